"""Runs of a process of their own that train by SGLang, broken off and gone on with."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from real_sglang import START_SECONDS
from safetensors.torch import load_file

from twinpass.train.journal import read

EXAMPLES = Path(__file__).parents[1] / "examples"


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "twinpass", "train", *words, "--json"], stderr=subprocess.PIPE, text=True
    )


def resume(run: Path) -> int:
    process = begin("--resume", str(run))
    process.communicate(timeout=2 * START_SECONDS)
    return process.returncode


def settings(out: Path, config: str = "reviews-mezo.toml", **changes: object) -> list[str]:
    values = {
        "engine.kind": "sglang",
        "optimizer.steps": 8,
        "optimizer.batch_size": 4,
        "task.train_rows": 40,
        "task.eval_rows": 8,
        "run.eval_every": 0,
        "run.out": out,
        **changes,
    }
    return [str(EXAMPLES / config), *(word for name, value in values.items() for word in ("--set", f"{name}={value}"))]


def steps(run: Path) -> int:
    journal = run / "journal.jsonl"
    return sum('"step"' in line for line in journal.read_text().splitlines()) if journal.exists() else 0


def die_after(run: Path, process: subprocess.Popen[str], kill: Callable[[], None], *, least: int = 2) -> str:
    """Train until ``least`` steps are in the journal, kill SGLang, and wait for the end; what was said."""
    until = time.monotonic() + START_SECONDS
    while steps(run) < least and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    kill()
    said = process.communicate(timeout=START_SECONDS)[1]
    assert process.returncode == 1, said
    assert least <= steps(run) < 8
    return said


def require_finished(run: Path, again: Path) -> None:
    """The run has all its steps, and its journal rebuilds what it trained on the embedded engine, to the bit."""
    records = read(run / "journal.jsonl").records
    assert [record["step"] for record in records if record["kind"] == "step"] == list(range(8))
    require_replayed(run, again)


def require_replayed(run: Path, again: Path) -> None:
    """A journal rebuilds what was trained on the embedded engine, to the bit."""
    command = [sys.executable, "-m", "twinpass", "replay", str(run), "--out", str(again)]
    assert subprocess.run(command, check=False).returncode == 0
    (ours,), (theirs,) = (list(at.glob("*/*model.safetensors")) for at in (run, again))
    trained, replayed = load_file(ours), load_file(theirs)
    assert all(torch.equal(trained[name], replayed[name]) for name in replayed)
