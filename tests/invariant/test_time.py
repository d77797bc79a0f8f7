"""A run ends when its time is over, and its steps and evaluations take what the clock says."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import tiny
from broken_off import ENDED, cut

from twinpass.cli.main import main
from twinpass.config.compose import build_embedded
from twinpass.config.load import load_config
from twinpass.core import Evaluation, StepReport
from twinpass.report.listener import Listener
from twinpass.report.runs import runs_in
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.trainer import Trainer


class Seconds(Listener):
    """Notes what steps and evaluations took."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.evaluations: list[float] = []

    def stepped(self, report: StepReport, seconds: float) -> None:
        self.steps.append(seconds)

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        self.evaluations.append(seconds)


@pytest.fixture
def ticking() -> Callable[[], float]:
    """Shows a second more at every look."""
    return map(float, count(100)).__next__


@pytest.mark.parametrize("kind", ["spsa", "backprop"])
def test_time_is_looked_at_between_steps(tmp_path: Path, kind: str, ticking: Callable[[], float]) -> None:
    """A step looks twice, and the run once before it, but for the first: 9 seconds are over before the fourth step."""
    config = load_config(tiny.config(tmp_path, estimator={"kind": kind}))
    session, seconds = build_embedded(config), Seconds()
    plan = replace(session.plan, max_seconds=9.0, eval_every=0, held_out=[])
    with closing(Journal.create(tmp_path / "journal.jsonl", header(config.values, session.engine))) as journal:
        history = Trainer(session.engine, plan, journal, listener=seconds, clock=ticking).run()
    assert len(history.steps) == 3
    assert seconds.steps == [1.0, 1.0, 1.0]


def test_evaluations_take_what_the_clock_says(tmp_path: Path, ticking: Callable[[], float]) -> None:
    config = load_config(tiny.config(tmp_path))
    session, seconds = build_embedded(config), Seconds()
    plan = replace(session.plan, optimizer=replace(session.plan.optimizer, steps=1), eval_every=1)
    with closing(Journal.create(tmp_path / "journal.jsonl", header(config.values, session.engine))) as journal:
        Trainer(session.engine, plan, journal, listener=seconds, clock=ticking).run()
    assert seconds.evaluations == [1.0, 1.0]


def test_times_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps and evaluations are summed over a run, however often it was begun; a command says what it took itself."""
    config, run = tiny.config(tmp_path), tmp_path / "run"
    for command in (["train", str(config)], ["train", "--resume", str(run)]):
        capsys.readouterr()
        assert main(command) in ENDED
        summary = json.loads((run / "summary.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for key, event in (("train_seconds", "step"), ("evaluation_seconds", "evaluation")):
            assert summary[key] == pytest.approx(sum(line["seconds"] for line in lines if line["event"] == event))
        (listed,) = runs_in(tmp_path)
        assert listed.seconds == pytest.approx(summary["train_seconds"] + summary["evaluation_seconds"])
        said = " ".join(capsys.readouterr().err.split())
        assert (
            f"8 steps in {summary['train_seconds']:.0f} s of training and {summary['evaluation_seconds']:.0f} s of evaluations; "
            f"this command took {summary['total_seconds']:.0f} s"
        ) in said
        if "--resume" not in command:
            assert summary["total_seconds"] > listed.seconds
            cut(run, 4)
