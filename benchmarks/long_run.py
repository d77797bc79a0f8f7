"""Many steps of a tiny model: whether memory, the journal or a step grow, and how long a killed run takes to go on.

    python benchmarks/long_run.py --json benchmarks/results/long-run.json

Each run is a process of its own, looked at from outside while it trains and killed by SIGKILL before its last steps; then it is resumed.
The journal is linear where its size, against steps, stays near the straight line between its first mark and its last: a line of a later
step is a little longer, as its number has more digits, and no more than that. Whether a step grows is read off the calls of functions that it makes, which nothing else on the machine changes, and off the processor's
seconds, which are disturbed less than the clock's.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiny

from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

TWINPASS = [sys.executable, "-m", "twinpass"]
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PARTS = 10
"""Memory and journal are looked at so many times."""

LEFT = 20
"""Steps that are left when the run is killed."""

BOUNDS: Mapping[str, float] = {
    "rss_growth": 0.02,
    "journal_off_a_line": 0.02,
    "calls_growth": 0.02,
    "step_cpu_growth": 0.25,
    "resume_cpu_seconds": 20.0,
}
"""What may at most be found; all but the last are fractions: of what there was after the first part, and of the whole journal."""

COUNTED = 10
"""Of so many steps one has its calls counted."""

KINDS: Mapping[str, dict[str, Any]] = {
    "lora": {},
    "adaptive-reflected": {
        "trainable": {"kind": "full"},
        "task": {"shots": 2},
        "reuse": {"policy": "reflected", "tolerance": 10.0},
        "epsilon": {"kind": "adaptive", "start": 1e-3},
    },
    "informed": {
        "trainable": tiny.INFORMED,
        "estimator": {"kind": "gauss_newton", "probes": 3},
    },
    "backprop": {
        "trainable": tiny.ACTIVATED,
        "estimator": {"kind": "backprop"},
        "optimizer": {"kind": "adamw", "lr": 1e-4, "snapshot_every": 100},
    },
}
"""What is trained by itself, and whatever looks back at earlier steps."""


def mark(process: subprocess.Popen[bytes], journal: Path, steps: int, began: float) -> dict[str, float]:
    """How a run stands."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "steps": steps,
        "seconds": time.monotonic() - began,
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / TICK,
        "rss_bytes": int(fields[21]) * PAGE,
        "journal_bytes": journal.stat().st_size,
    }


def goes_on(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process runs. One that has ended is not reaped, so that :func:`mark` can still ask how it stood."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def steps_of(journal: Path, before: tuple[int, int]) -> tuple[int, int]:
    """Steps in a journal, and the bytes that were read of it; ``before`` is what was found the last time."""
    steps, at = before
    if not journal.exists():
        return before
    with journal.open("rb") as file:
        file.seek(at)
        whole = file.read().rpartition(b"\n")[0] + b"\n"
    if whole == b"\n":
        return before
    return steps + whole.count(b'{"kind":"step"'), at + len(whole)


def watched(config: Path, run: Path, steps: int) -> list[dict[str, float]]:
    """Marks of a run, which is killed near its end."""
    journal, marks, known = run / "journal.jsonl", list[dict[str, float]](), (0, 0)
    began = time.monotonic()
    command = [sys.executable, __file__, "--child", str(run.with_name("calls")), "train", str(config), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while goes_on(process) and known[0] < steps - LEFT:
            time.sleep(0.02)
            known = steps_of(journal, known)
            if known[0] >= len(marks) * (steps - LEFT) // PARTS and known[0]:
                marks.append(mark(process, journal, known[0], began))
        process.send_signal(signal.SIGKILL)
    if len(marks) <= PARTS:
        raise SystemExit(f"the run ended after {known[0]} steps")
    return marks


def child(file: str, arguments: Sequence[str]) -> int:
    """``twinpass`` with some arguments; of some steps the number and the calls of Python and C functions go to ``file``."""
    from twinpass.cli.main import main
    from twinpass.train.trainer import Trainer

    following = Trainer._next
    with Path(file).open("a", buffering=1) as counts:

        def counted(trainer: Trainer, late: bool) -> bool:
            steps, calls = len(trainer.history.steps), 0

            def count(frame: object, event: str, argument: object) -> None:
                nonlocal calls
                calls += event in ("call", "c_call")

            sys.setprofile(None if steps % COUNTED else count)
            try:
                return following(trainer, late)
            finally:
                sys.setprofile(None)
                if calls and len(trainer.history.steps) > steps:
                    counts.write(f"{steps} {calls}\n")

        setattr(Trainer, "_next", counted)  # noqa: B010
        return main(arguments)


def calls_a_step(counts: Path, steps: int) -> list[float]:
    """The median calls of a step in each part of a run."""
    found = [list(map(int, line.split())) for line in counts.read_text().splitlines()]
    return [
        statistics.median(calls for step, calls in found if i * steps <= PARTS * step < (i + 1) * steps)
        for i in range(PARTS)
    ]


def off_a_line(points: Sequence[tuple[float, float]]) -> float:
    """How far points lie, at the most, from the straight line between the first and the last, as a fraction of the last."""
    (start, low), (end, high) = points[0], points[-1]
    return max(abs(y - low - (high - low) * (x - start) / (end - start)) for x, y in points) / high


def measure(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """A run of ``steps`` steps, killed and resumed."""
    run = folder / "run"
    kind = KINDS[name]
    sections = {**kind, "optimizer": {**kind.get("optimizer", {}), "steps": steps, "batch_size": 2}}
    config = tiny.config(folder, **sections, run={"eval_every": steps // 100, "out": str(run)})
    marks = watched(config, run, steps)
    began, known = time.monotonic(), steps_of(run / "journal.jsonl", (0, 0))
    with subprocess.Popen([*TWINPASS, "train", "--resume", str(run), "--json"], stdout=subprocess.PIPE) as process:
        before, now = known[0], known
        while goes_on(process) and now[0] == before:
            time.sleep(0.02)
            now = steps_of(run / "journal.jsonl", now)
        resumed = mark(process, run / "journal.jsonl", now[0], began)
        said = process.communicate()[0].decode()
    if process.returncode not in (0, 3):
        raise SystemExit(f"{name}: exit {process.returncode}: {said}")
    bytes_a_step = [
        (now["journal_bytes"] - then["journal_bytes"]) / (now["steps"] - then["steps"]) for then, now in pairwise(marks)
    ]
    cpu_a_step = [
        (now["cpu_seconds"] - then["cpu_seconds"]) / (now["steps"] - then["steps"]) for then, now in pairwise(marks)
    ]
    calls = calls_a_step(run.with_name("calls"), steps - LEFT)
    rss = [each["rss_bytes"] for each in marks[1:]]
    found = {
        "rss_growth": max(rss) / rss[0] - 1,
        "journal_off_a_line": off_a_line([(mark["steps"], mark["journal_bytes"]) for mark in marks]),
        "calls_growth": max(calls[1:]) / calls[1] - 1,
        "step_cpu_growth": statistics.median(cpu_a_step[-3:]) / statistics.median(cpu_a_step[1:4]) - 1,
        "resume_cpu_seconds": resumed["cpu_seconds"],
    }
    return {
        **found,
        "problems": [key for key, most in BOUNDS.items() if found[key] > most],
        "resume_seconds": resumed["seconds"],
        "steps_done": json.loads((run / "summary.json").read_text())["steps"],
        "calls_a_step": calls,
        "cpu_seconds_a_step": cpu_a_step,
        "journal_bytes_a_step": bytes_a_step,
        "marks": marks,
    }


def main(names: Sequence[str], steps: int, file: Path | None) -> dict[str, Any]:
    """All kinds; ``file`` holds what is known of them after each."""
    found = dict[str, Any]()
    result = {"steps": steps, "kinds": found, "commit": commit(), "machine": machine(), "versions": versions()}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, steps, Path(folder))
        print(name, {key: found[name][key] for key in (*BOUNDS, "problems")}, flush=True)
        if file:
            write_json(file, result)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = main(given.kinds, given.steps, given.json)
    if not given.json:
        print(json.dumps(result, indent=2))
    sys.exit(any(kind["problems"] for kind in result["kinds"].values()))
