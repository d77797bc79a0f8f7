"""Runs of every kind are killed at random, starved of disk and started twice; what they come to has to be the same to the bit.

    python tests/chaos.py --kills 200 --json benchmarks/results/chaos.json

Processes are forked from one that has imported everything and trained once, and killed by SIGKILL at a moment drawn from the whole of a run.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
from chaos_runs import ENDED, KINDS, REAL, Kind, at_writes
from numba.np.ufunc import parallel

from twinpass.cli.main import main
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.train import run as finished_run


def killed(kind: Kind, chance: random.Random) -> str | None:
    """Kill a run one to three times, and let it end."""
    kind.clear()
    kills = 0
    for _ in range(chance.randrange(1, 4)):
        if not kind.child(kind.command()).kill_after(chance.uniform(0.0, kind.seconds)):
            break
        kills += 1
    kind.found["kills"] += kills
    kind.found["runs killed"] += kills > 0
    return kind.goes_on()


def killed_writing(kind: Kind, chance: random.Random) -> str | None:
    """Kill a run as it is about to change its folder, for the so-and-so-manieth time; then as it goes on; and let it end."""
    kind.clear()
    for _ in range(chance.randrange(1, 3)):
        at = chance.randrange(1, kind.writes + 1)

        def kill(number: int, last: int = at) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        code = kind.child(kind.command(), lambda: at_writes(kind.run, kill)).wait()
        kind.found["killed at a write"] += code == -signal.SIGKILL
        if code not in (-signal.SIGKILL, *ENDED):
            return f"exit {code}: {kind.words()[-1500:]}"
    return kind.goes_on()


def starved(kind: Kind, chance: random.Random) -> str | None:
    """Let no file grow beyond a size drawn at random; then give it room."""
    kind.clear()
    size = chance.randrange(64, 2 * len(kind.whole["journal.jsonl"]))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    code = kind.child(kind.fresh, limit).wait()
    return kind.refused(code, "files of limited size") or kind.goes_on()


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """An empty file system of some size at ``folder``; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full_disk(kind: Kind, chance: random.Random) -> str | None:
    """Run on a file system of some kilobytes; then make it larger."""
    kind.clear()
    with mounted(kind.run, f"{chance.randrange(8, 64)}k"):
        code = kind.child(kind.fresh).wait()
        problem = kind.refused(code, "full disk")
        remount(kind.run, "size=64m")
        return problem or kind.goes_on()


def read_only(kind: Kind, chance: random.Random) -> str | None:
    """Go on where nothing can be written; then where it can."""
    kind.clear()
    with mounted(kind.run, "64m"):
        kind.child(kind.fresh).kill_after(chance.uniform(0.0, kind.seconds))
        remount(kind.run, "ro")
        code = kind.child(kind.command()).wait()
        problem = kind.refused(code, "read-only disk")
        remount(kind.run, "rw")
        return problem or ("it was written to" if code in ENDED else kind.goes_on())


def broken_disk(kind: Kind, chance: random.Random) -> str | None:
    """Let a system call fail with EIO, from the so-and-so-manieth on; then no longer."""
    kind.clear()
    call, files = chance.choice([("fsync", []), ("write", ["journal.jsonl"]), ("write", ["metrics.jsonl"])])
    first = chance.randrange(1, 2 + 2 * kind.whole["journal.jsonl"].count(b"\n"))
    ready, go = os.pipe()
    child = kind.child(kind.fresh, lambda: os.read(ready, 1))
    where = [word for file in files for word in ("-P", str(kind.run / file))]
    inject = [f"trace={call}", "-e", f"inject={call}:error=EIO:when={first}+"]
    tracer = subprocess.Popen(["strace", "-qq", "-o", "/dev/null", "-p", str(child.pid), "-e", *inject, *where])
    while "TracerPid:\t0" in Path(f"/proc/{child.pid}/status").read_text() and tracer.poll() is None:
        time.sleep(0.001)
    os.write(go, b"!")
    code = child.wait()
    tracer.wait()
    os.close(ready)
    os.close(go)
    return kind.refused(code, f"EIO from {call}") or kind.goes_on()


def twice(kind: Kind, chance: random.Random) -> str | None:
    """Two processes on one folder: one goes on, the other is refused."""
    kind.clear()
    kind.child(kind.fresh).kill_after(chance.uniform(0.0, 0.9) * kind.seconds)
    command = kind.command()
    children = [kind.child(command, name=name) for name in ("said", "also")]
    codes = sorted(child.wait() for child in children)
    kind.found["pairs of processes"] += 1
    refused, others = codes.count(2), [code for code in codes if code != 2]
    kind.found["pairs of processes: one refused"] += refused == 1
    words = kind.words("said") + kind.words("also")
    known = not refused or "is being written by" in words or "already holds" in words
    if not others or any(code not in ENDED for code in others) or not known or "Traceback" in words:
        return f"exits {codes}: {words[-500:]}"
    return None if kind.result() == kind.whole else "another result"


Trial = Callable[[Kind, random.Random], str | None]
FAULTS: dict[str, tuple[Trial, Callable[[], bool]]] = {
    "killed_writing": (killed_writing, lambda: True),
    "starved": (starved, lambda: True),
    "full_disk": (full_disk, lambda: os.geteuid() == 0),
    "read_only": (read_only, lambda: os.geteuid() == 0),
    "broken_disk": (broken_disk, lambda: shutil.which("strace") is not None),
    "twice": (twice, lambda: True),
}
"""Trials other than kills, and where they can be had."""


def warm() -> None:
    """Import everything, and load most kernels: a process that is forked has it already."""
    # these locks are shared with forked processes, and one that is killed never gives them back
    bars: Any = importlib.import_module("tqdm")
    bars.tqdm.set_lock(threading.RLock())
    setattr(parallel, "_backend_init_process_lock", threading.RLock())  # noqa: B010
    # plots are drawn from a finished run, and take longer than it
    setattr(finished_run, "draw_run", lambda *arguments: [])  # noqa: B010
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        main(["train", str(tiny.config(Path(folder))), "--json"])


def run(
    kills: int, faults: int, seed: int, names: Sequence[str], only: Sequence[str] = tuple(FAULTS)
) -> dict[str, Any]:
    """So many kills in all, and each fault so many times a kind."""
    chance, problems = random.Random(seed), list[str]()
    began = time.monotonic()

    def attempt(trial: Trial, kind: Kind) -> None:
        if said := trial(kind, chance):
            problems.append(f"{kind.name}, {trial.__name__}: {said}")
            print(problems[-1], flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        warm()
        kinds = []
        for name in names:
            kinds.append(Kind(name, Path(temporary)))
            print(f"{name}: {kinds[-1].seconds:.2f} s", flush=True)
        while sum(kind.found["kills"] for kind in kinds) < kills:
            for kind in kinds:
                attempt(killed, kind)
        print(f"{sum(kind.found['kills'] for kind in kinds)} kills: {time.monotonic() - began:.0f} s", flush=True)
        left_out = [name for name, (_, possible) in FAULTS.items() if not possible()]
        for trial, possible in (FAULTS[name] for name in only):
            for kind in kinds * faults if possible() else ():
                attempt(trial, kind)
            print(f"{trial.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    found: Counter[str] = sum((kind.found for kind in kinds), Counter())
    return {
        "seed": seed,
        "seconds": time.monotonic() - began,
        "found": dict(sorted(found.items())),
        "by_kind": {kind.name: dict(sorted(kind.found.items())) for kind in kinds},
        "left_out": left_out,
        "problems": problems,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, default=2, help="times a kind of run")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *REAL], default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = run(given.kills, given.faults, given.seed, given.kinds, given.only)
    if given.json:
        write_json(given.json, result)
    else:
        print(json.dumps(result, indent=2))
    sys.exit(bool(result["problems"]))
