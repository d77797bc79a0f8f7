"""A run ends once its metric no longer rises, and stays ended when it is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from twinpass.cli.main import main
from twinpass.config.load import parse
from twinpass.train.history import History
from twinpass.train.journal import read

STILL: dict[str, Any] = {
    "trainable": {"kind": "lora", "rank": 2},
    "optimizer": {"lr": 1e-9, "steps": 9, "batch_size": 2},
}
"""So slow that no evaluation comes to more than the first."""


@pytest.mark.parametrize(
    ("values", "patience", "settled"),
    [
        ([0.5, 0.6, 0.6], 1, True),
        ([0.5, 0.6, 0.6], 2, False),
        ([0.5, 0.7, 0.6, 0.65], 2, True),
        ([0.5, 0.7, 0.6, 0.71], 2, False),
        ([0.7, 0.5, 0.6], 2, True),
        ([0.7, 0.5], 2, False),
        ([0.7, 0.7, 0.7, 0.7], 0, False),
        ([], 1, False),
    ],
)
def test_it_is_settled_when_so_many_evaluations_came_to_no_more(
    values: list[float], patience: int, settled: bool
) -> None:
    history = History(evaluations={4 * i: value for i, value in enumerate(values)})
    assert history.settled(patience) is settled


def test_a_run_ends_and_stays_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"out": str(tmp_path / "run"), "eval_every": 1, "patience": 3}
    main(["train", str(tiny.config(tmp_path, **STILL, run=run))])
    said = " ".join(capsys.readouterr().err.split())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["steps_planned"], summary["settled"]) == (3, 9, True)
    assert "ended after 3 of at most 9 steps: accuracy no longer rose (run.patience)" in said
    assert "max_seconds" not in said
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    (tmp_path / "run" / "summary.json").unlink()
    main(["train", "--resume", str(tmp_path / "run")])
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    assert len(History.of(read(tmp_path / "run" / "journal.jsonl").records).steps) == 3


def test_steps_that_are_given_are_all_taken() -> None:
    task = {"train": "a.jsonl", "prompt": "Review: {text}\n", "suffix": "Label:", "options": [" a", " b"]}
    kind = {"kind": "informed"}
    values: dict[str, Any] = {"model": {"path": "m"}, "trainable": kind, "task": task, "run": {"out": "run"}}
    free = parse(values, "it.toml", Path("/nowhere"))
    assert (free.run.patience, free.run.eval_every, free.optimizer.steps) == (2, 1, 12)
    assert parse({**values, "optimizer": {"steps": 5}}, "it.toml", Path("/nowhere")).run.patience == 0
    both = {**values, "optimizer": {"steps": 5}, "run": {"out": "run", "patience": 4}}
    assert parse(both, "it.toml", Path("/nowhere")).run.patience == 4
