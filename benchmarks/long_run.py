"""Many steps of a tiny model: whether memory, the journal or a step grow, and how long a killed run takes to go on.

    python benchmarks/long_run.py --json benchmarks/results/long-run.json

Each run is a process of its own, looked at from outside while it trains and killed by SIGKILL before its last steps; then it is resumed.
Seconds of a step are of the processor, which other processes on the machine disturb less.
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

KINDS: Mapping[str, dict[str, Any]] = {
    "lora": {},
    "adaptive-reflected": {
        "trainable": {"kind": "full"},
        "task": {"shots": 2},
        "reuse": {"policy": "reflected", "tolerance": 10.0},
        "epsilon": {"kind": "adaptive", "start": 1e-3},
    },
}
"""What is trained, and whatever looks back at earlier steps."""


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
    with subprocess.Popen([*TWINPASS, "train", str(config), "--json"], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and known[0] < steps - LEFT:
            time.sleep(0.02)
            known = steps_of(journal, known)
            if known[0] >= len(marks) * (steps - LEFT) // PARTS and known[0]:
                marks.append(mark(process, journal, known[0], began))
        process.send_signal(signal.SIGKILL)
    if len(marks) <= PARTS:
        raise SystemExit(f"the run ended after {known[0]} steps")
    return marks


def measure(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """A run of ``steps`` steps, killed and resumed."""
    run = folder / "run"
    sections = {**KINDS[name], "optimizer": {"steps": steps, "batch_size": 2}}
    config = tiny.config(folder, **sections, run={"eval_every": steps // 100, "out": str(run)})
    marks = watched(config, run, steps)
    began, known = time.monotonic(), steps_of(run / "journal.jsonl", (0, 0))
    with subprocess.Popen([*TWINPASS, "train", "--resume", str(run), "--json"], stdout=subprocess.PIPE) as process:
        before, now = known[0], known
        while process.poll() is None and now[0] == before:
            time.sleep(0.02)
            now = steps_of(run / "journal.jsonl", now)
        resumed = time.monotonic() - began
        said = process.communicate()[0].decode()
    if process.returncode not in (0, 3):
        raise SystemExit(f"{name}: exit {process.returncode}: {said}")
    ends = [marks[i + 1]["cpu_seconds"] - marks[i]["cpu_seconds"] for i in range(PARTS)]
    counts = [marks[i + 1]["steps"] - marks[i]["steps"] for i in range(PARTS)]
    bytes_a_step = [
        (marks[i + 1]["journal_bytes"] - marks[i]["journal_bytes"]) / count for i, count in enumerate(counts)
    ]
    tenths = [seconds / count for seconds, count in zip(ends, counts, strict=True)]
    rss = [each["rss_bytes"] for each in marks]
    return {
        "marks": marks,
        "rss_growth": rss[-1] / rss[1] - 1,
        "journal_bytes_a_step": {"first": bytes_a_step[0], "last": bytes_a_step[-1]},
        "journal_off_a_line": max(bytes_a_step) / statistics.median(bytes_a_step) - 1,
        "step_cpu_seconds": {"first": tenths[0], "last": tenths[-1]},
        "resume_seconds": resumed,
        "steps_done": json.loads((run / "summary.json").read_text())["steps"],
    }


def main(names: Sequence[str], steps: int) -> dict[str, Any]:
    """All kinds."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, steps, Path(folder))
        print(name, {key: value for key, value in found[name].items() if key != "marks"}, flush=True)
    return {"steps": steps, "kinds": found, "commit": commit(), "machine": machine(), "versions": versions()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = main(given.kinds, given.steps)
    if given.json:
        write_json(given.json, result)
    else:
        print(json.dumps(result, indent=2))
