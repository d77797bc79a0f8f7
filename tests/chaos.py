"""Runs of every kind are killed at random, starved of disk and started twice; what they come to has to be the same to the bit.

    python tests/chaos.py --minutes 10 --json benchmarks/results/chaos.json

Processes are forked from one that has imported everything, and killed by SIGKILL at a moment drawn from the whole of a run.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import torch
import transformers

from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

LOADED = (numba, torch, transformers)
"""What takes the time of a start: a process that is forked has it already."""

ENDED = (0, 3)
ACTIVATED = {"kind": "activated", "rank": 2, "alpha": 4.0}
SHOTS = {"shots": 2}

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-inplace": {"estimator": {"perturbation": "inplace"}},
    "full": {"trainable": {"kind": "full"}},
    "full-bfloat16": {"trainable": {"kind": "full"}, "model": {"dtype": "bfloat16"}},
    "full-inplace": {"trainable": {"kind": "full"}, "estimator": {"perturbation": "inplace"}},
    "one-sided": {"estimator": {"kind": "one_sided", "probes": 2}},
    "jvp": {"trainable": {"kind": "full"}, "estimator": {"kind": "jvp", "probes": 1}},
    "blocks": {"trainable": {"kind": "layers", "first": 0, "last": 2, "block": 1, "every": 2}},
    "activated": {"trainable": ACTIVATED},
    "activated-spill": {"trainable": ACTIVATED, "reuse": {"policy": "activated", "spill": "SPILL"}},
    "reflected": {"trainable": {"kind": "full"}, "task": SHOTS, "reuse": {"policy": "reflected", "tolerance": 10.0}},
    "transported": {
        "trainable": {"kind": "full"},
        "task": SHOTS,
        "reuse": {"policy": "transported", "refresh": 3, "tolerance": 10.0},
        "estimator": {"probes": 1},
    },
    "adaptive": {"epsilon": {"kind": "adaptive", "start": 1e-3}},
    "informed": {
        "trainable": {"kind": "informed", "layers": 1, "fit_rows": 6},
        "estimator": {"kind": "gauss_newton", "probes": 3},
    },
    "backprop": {
        "trainable": ACTIVATED,
        "estimator": {"kind": "backprop"},
        "optimizer": {"kind": "adamw", "lr": 1e-2, "steps": 8, "batch_size": 4, "snapshot_every": 3},
    },
}
"""Every estimator, and whatever has a state of its own."""


class Child:
    """``main`` with some arguments in a process of its own. This one computes nothing: OpenMP cannot be forked."""

    def __init__(self, arguments: Sequence[str], said: Path, before: Callable[[], Any] = lambda: None) -> None:
        self.said = said
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                before()
                from twinpass.cli.main import main

                code = main(arguments) if arguments else 0
            except BaseException:
                import traceback

                with suppress(BaseException):
                    traceback.print_exc()
            finally:
                os._exit(code)

    def kill_after(self, seconds: float) -> bool:
        """Whether it was still alive then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return True

    def wait(self) -> int:
        """Its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def configured(folder: Path, sections: dict[str, Any]) -> Path:
    """A tiny model, rows and a configuration, made in another process."""

    def make() -> None:
        import tiny

        tiny.config(folder, **sections)

    Child([], folder / "made", make).wait()
    return folder / "config.toml"


class Kind:
    """One kind of run, and what it comes to undisturbed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.run = name, folder / name, folder / name / "run"
        self.folder.mkdir()
        text = json.dumps(KINDS[name]).replace('"SPILL"', json.dumps(str(self.folder / "kv")))
        self.config = configured(self.folder, json.loads(text))
        self.fresh = ["train", str(self.config), "--json"]
        self.further = ["train", "--resume", str(self.run), "--json"]
        began = time.monotonic()
        code = self.child(self.fresh).wait()
        self.seconds = time.monotonic() - began
        if code not in ENDED:
            raise SystemExit(f"{name}: {self.words()}")
        self.whole = self.result()

    def child(self, arguments: Sequence[str], before: Callable[[], Any] = lambda: None, name: str = "said") -> Child:
        return Child(arguments, self.folder / name, before)

    def words(self, name: str = "said") -> str:
        return (self.folder / name).read_text(errors="replace")

    def result(self) -> dict[str, bytes]:
        """The journal, and the weights that were left."""
        kept = [
            self.run / "journal.jsonl",
            *self.run.glob("adapter/*.safetensors"),
            *self.run.glob("model/*.safetensors"),
        ]
        return {str(path.relative_to(self.run)): path.read_bytes() for path in kept}

    def clear(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.rmtree(self.folder / "kv", ignore_errors=True)

    def command(self) -> list[str]:
        """What a user would type: resume, or begin where nothing has begun."""
        journal = self.run / "journal.jsonl"
        return self.further if journal.exists() and b"\n" in journal.read_bytes() else self.fresh


def problem_of(kind: Kind, code: int) -> str | None:
    if code not in ENDED:
        return f"{kind.name}: exit {code}: {kind.words()[-500:]}"
    return None if kind.result() == kind.whole else f"{kind.name}: another result"


def killed(kind: Kind, chance: random.Random, found: Counter[str]) -> str | None:
    """Kill a run one to three times, and let it end."""
    kind.clear()
    for _ in range(chance.randrange(1, 4)):
        if not kind.child(kind.command()).kill_after(chance.uniform(0.0, kind.seconds)):
            break
        found["kills"] += 1
    found["runs killed and resumed"] += 1
    return problem_of(kind, kind.child(kind.command()).wait())


def starved(kind: Kind, chance: random.Random, found: Counter[str]) -> str | None:
    """Let no file grow beyond a size drawn at random, as on a disk that is full; then give it room."""
    kind.clear()
    size = chance.randrange(64, 2 * len(kind.whole["journal.jsonl"]))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    code = kind.child(kind.fresh, limit).wait()
    found["runs without room for files"] += 1
    found["of them refused with a message"] += code in (1, 2)
    if code not in (1, 2, *ENDED) or "Traceback" in kind.words():
        return f"{kind.name} with files of {size}: exit {code}: {kind.words()[-500:]}"
    return problem_of(kind, kind.child(kind.command()).wait())


def full_disk(kind: Kind, chance: random.Random, found: Counter[str]) -> str | None:
    """The same on a file system of some kilobytes, where one can be mounted."""
    kind.clear()
    kind.run.mkdir()
    size = chance.randrange(8, 64)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(kind.run)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    try:
        code = kind.child(kind.fresh).wait()
        found["runs on a full disk"] += 1
        if code not in (1, 2, *ENDED) or "Traceback" in kind.words():
            return f"{kind.name} on {size} KiB: exit {code}: {kind.words()[-500:]}"
        subprocess.run(["mount", "-o", "remount,size=64m", str(kind.run)], check=True)
        return problem_of(kind, kind.child(kind.command()).wait())
    finally:
        subprocess.run(["umount", "-l", str(kind.run)], check=False)


def twice(kind: Kind, chance: random.Random, found: Counter[str]) -> str | None:
    """Two processes on one folder: one goes on, the other is refused."""
    kind.clear()
    kind.child(kind.fresh).kill_after(chance.uniform(0.3, 0.9) * kind.seconds)
    command = kind.command()
    children = [kind.child(command, name=name) for name in ("said", "also")]
    codes = sorted(child.wait() for child in children)
    found["pairs of processes"] += 1
    words = kind.words("said") + kind.words("also")
    if (
        codes[0] not in ENDED
        or codes[1] not in (2, *ENDED)
        or (codes[1] == 2 and "is being written by" not in words and "already holds" not in words)
    ):
        return f"{kind.name} twice: exits {codes}: {words[-500:]}"
    found["of them one refused"] += codes[1] == 2
    return None if kind.result() == kind.whole else f"{kind.name} twice: another result"


TRIALS = (killed, killed, killed, killed, starved, full_disk, twice)


def long_run(folder: Path, steps: int) -> dict[str, Any]:
    """Many steps of a tiny model: does memory, the journal or a step grow, and how long does it take to go on?"""
    sections: dict[str, Any] = {
        "optimizer": {"steps": steps, "batch_size": 2},
        "estimator": {"probes": 1},
        "run": {"eval_every": 0, "out": str(folder / "run")},
    }
    config = configured(folder, sections)
    child = Child(["train", str(config), "--json"], folder / "said")
    journal, marks = folder / "run/journal.jsonl", list[dict[str, float]]()
    began = time.monotonic()
    due = steps // 10
    while not os.waitpid(child.pid, os.WNOHANG)[0]:
        time.sleep(0.05)
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if lines >= due:
            with suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
                size = journal.stat().st_size
                mark = {
                    "steps": lines,
                    "seconds": time.monotonic() - began,
                    "rss_bytes": pages * 4096,
                    "journal_bytes": size,
                }
                marks.append(mark)
                due = lines + steps // 10
    began = time.monotonic()
    code = Child(["train", "--resume", str(folder / "run"), "--json"], folder / "said").wait()
    return {"steps": steps, "marks": marks, "resume_seconds": time.monotonic() - began, "resume_exit": code}


def run(minutes: float, seed: int, long: int, names: Sequence[str]) -> dict[str, Any]:
    """Trials for so many minutes, over all kinds in turn."""
    chance, found, problems = random.Random(seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = []
        for name in names:
            kinds.append(Kind(name, folder))
            print(f"{name}: {kinds[-1].seconds:.1f} s", flush=True)
        by_kind: Counter[str] = Counter()
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            for kind in kinds:
                trial = chance.choice(TRIALS)
                by_kind[kind.name] += 1
                if said := trial(kind, chance, found):
                    problems.append(f"{trial.__name__}: {said}")
                    print(problems[-1], flush=True)
        print(dict(found), flush=True)
        lengthy = {}
        if long:
            (folder / "long").mkdir()
            lengthy = {"long_run": long_run(folder / "long", long)}
    return {
        "seed": seed,
        "seconds": time.monotonic() - began,
        "counts": dict(found),
        "trials_by_kind": dict(by_kind),
        "problems": problems,
        **lengthy,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", type=int, default=10_000, metavar="STEPS", help="0 leaves the long run out")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = run(given.minutes, given.seed, given.long, given.kinds)
    if given.json:
        write_json(given.json, result)
    else:
        print(json.dumps(result, indent=2))
    sys.exit(bool(result["problems"]))
