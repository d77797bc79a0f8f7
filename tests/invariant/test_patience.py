"""A run ends once its metric no longer rises, and stays ended when it is resumed."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tiny

from twinpass import AdamW, Lora, finetune
from twinpass.cli.main import main
from twinpass.config.load import parse
from twinpass.errors import ConfigError, DataError
from twinpass.estimate.spsa import Spsa
from twinpass.objective.choice import Choice
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.schedule.learning_rate import ScheduleName
from twinpass.steps import Rollback
from twinpass.train.history import History
from twinpass.train.journal import read
from twinpass.train.optimizer import Sgd
from twinpass.train.plan import TrainingPlan

STILL: dict[str, Any] = {
    "trainable": {"kind": "lora", "rank": 2},
    "optimizer": {"lr": 1e-9, "steps": 9, "batch_size": 2},
}
"""So slow that no evaluation comes to more than the first."""


@pytest.mark.parametrize(
    ("values", "patience", "plateaus"),
    [
        ([0.5, 0.6, 0.6], 1, 1),
        ([0.5, 0.6, 0.6], 2, 0),
        ([0.5, 0.7, 0.6, 0.65], 2, 1),
        ([0.5, 0.7, 0.6, 0.71], 2, 0),
        ([0.7, 0.5, 0.6], 2, 1),
        ([0.7, 0.5], 2, 0),
        ([0.7, 0.7, 0.7, 0.7], 0, 0),
        ([0.7, 0.6, 0.6, 0.8, 0.8, 0.7, 0.7, 0.8], 2, 3),
        ([0.7, 0.6, 0.6, 0.6, 0.71, 0.7], 2, 1),
        ([], 1, 0),
    ],
)
def test_a_plateau_is_so_many_evaluations_that_came_to_no_more(
    values: list[float], patience: int, plateaus: int
) -> None:
    history = History(evaluations={4 * i: value for i, value in enumerate(values)})
    assert history.plateaus(patience, 4) == plateaus
    assert history.plateaus(patience, 0) == 0
    assert training_plan(patience=patience, every=4).settled(history) is (plateaus > 0)


def test_an_evaluation_that_was_made_because_time_was_up_decides_nothing() -> None:
    values = {0: 0.5, 8: 0.9, 16: 0.89, 24: 0.91}
    assert History(evaluations={**values, 12: 0.88}).plateaus(2, 8) == History(evaluations=values).plateaus(2, 8) == 0
    assert History(evaluations={**values, 12: 0.88}).plateaus(2, 4) == 1, "it would, if it had been due"


def test_the_rate_falls_at_each_plateau_and_the_third_ends_the_run() -> None:
    plan = training_plan("plateau", patience=1)
    for values, rate in (([0.5], 0.1), ([0.5, 0.5], 0.03), ([0.5, 0.5, 0.6], 0.03), ([0.5, 0.5, 0.4], 0.009)):
        history = History(evaluations=dict(enumerate(values)), lr_scale=0.5)
        assert plan.lr_at(7, history) == pytest.approx(0.5 * rate)
        assert not plan.settled(history)
    assert plan.settled(History(evaluations=dict(enumerate([0.5, 0.4, 0.3, 0.2]))))
    assert training_plan("constant", patience=1).lr_at(7, History(evaluations={0: 0.5, 1: 0.5})) == 0.1


def test_a_rollback_takes_no_plateau_back() -> None:
    """The evaluations that made it are gone from the history, and the rate stays where it had fallen to."""
    for schedule, lasting in (("plateau", 0.3), ("linear", 1.0)):
        plan = training_plan(schedule, patience=1)  # type: ignore[arg-type]
        history = History(evaluations=dict(enumerate([0.5, 0.6, 0.6, 0.7, 0.5])), lr_scale=0.5)
        back = Rollback(3, "far below the best")
        before, scale = plan.slowed(history), plan.slowed_by(history, back)
        assert scale == pytest.approx(0.5 * plan.optimizer.guard_lr * lasting)
        after = History(evaluations=dict(enumerate([0.5, 0.6, 0.6, 0.7])), lr_scale=scale)
        assert plan.slowed(after) == pytest.approx(before * plan.optimizer.guard_lr)


def training_plan(schedule: ScheduleName = "linear", patience: int = 0, every: int = 1) -> TrainingPlan:
    """One of nine steps, without rows."""
    sgd = Sgd(lr=0.1, steps=9, schedule=schedule)
    return TrainingPlan(Spsa(), Choice(), ConstantEpsilon(1e-3), sgd, [], [], patience=patience, eval_every=every)


@pytest.mark.parametrize(
    "learner",
    [
        {"trainable": {"kind": "lora", "rank": 2}},
        {"trainable": {"kind": "lora", "rank": 2}, "estimator": {"kind": "spsa"}, "epsilon": {"value": 1e-2}},
    ],
    ids=["gradient", "probes"],
)
def test_steps_of_no_given_number_end_by_themselves_and_continue_to_the_same_bits(
    tmp_path: Path, learner: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = {"lr": 1e-3, "steps": "auto", "batch_size": 2}
    run = {"out": str(tmp_path / "run"), "eval_every": 2}
    main(["train", str(tiny.config(tmp_path, **learner, optimizer=optimizer, run=run))])
    whole = (tmp_path / "run" / "journal.jsonl").read_bytes()
    history = History.of(read(tmp_path / "run" / "journal.jsonl").records)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps_planned"], summary["settled"], summary["lr_scale"]) == (2000, True, pytest.approx(0.027))
    said = capsys.readouterr().err
    assert [line.split()[-1] for line in said.splitlines() if "no longer rising" in line] == ["0.3", "0.09"]
    assert history.plateaus(2, 2) == 3
    rates = [step.lr for step in history.steps]
    assert sorted(set(rates), reverse=True) == pytest.approx([1e-3, 3e-4, 9e-5])
    assert rates == sorted(rates, reverse=True)
    lines = whole.splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(b"".join(lines[: 2 * len(lines) // 3]))
    (tmp_path / "run" / "summary.json").unlink()
    main(["train", "--resume", str(tmp_path / "run")])
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == whole


def test_a_run_ends_and_stays_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"out": str(tmp_path / "run"), "eval_every": 1, "patience": 3}
    main(["train", str(tiny.config(tmp_path, **STILL, run=run))])
    said = " ".join(capsys.readouterr().err.split())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["steps_planned"], summary["settled"]) == (3, 9, True)
    assert "ended after 3 of at most 9 steps: accuracy no longer rose, by evaluations of" in said
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


def test_python_says_it_by_the_schedule(tmp_path: Path) -> None:
    task: Any = {"prompt": "Review: {text}", "options": [" bad", " good"], "out": tmp_path / "run", "trainable": Lora()}
    optimizer = AdamW(lr=1e-9, steps=99, batch_size=2, schedule="plateau")
    summary = finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), tiny.rows(4), **task, optimizer=optimizer)
    values = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (values["run"]["eval_every"], values["run"]["patience"]) == (8, 2)
    assert (summary["steps"], summary["settled"]) == (6 * 8, True)
    task = {**task, "out": tmp_path / "other"}
    with pytest.raises(ConfigError, match="goes by evaluations"):
        finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), tiny.rows(4), **task, optimizer=optimizer, patience=0)
    with pytest.raises(DataError, match="no rows are held out"):
        finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), [], **task, optimizer=optimizer)
    assert not (tmp_path / "other" / "journal.jsonl").exists()
