"""What is shown while a run goes on, and after: on 80 columns, and after rollbacks."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from matplotlib.figure import Figure
from rich.console import Console

from twinpass.cli.main import main
from twinpass.core import Estimate, Evaluation, Probe, StepReport, Work
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Full
from twinpass.report.plots import draw_loss, in_force
from twinpass.report.progress import ProgressBar
from twinpass.steps import Rollback
from twinpass.train.spaces import TOGETHER, Spaces, advance


def report(step: int, loss: float = 0.5) -> StepReport:
    estimate = Estimate((Probe(1),), 1e-2, ((loss, loss),), (0.25,))
    return StepReport(step, estimate, (0.25,), 1e-3, Work(100, 25, {"shared_prefix": 60, "activated": 15}))


def shown(verbose: bool, width: int = 80) -> list[str]:
    """The last lines of the display after a step of 1,000 and an evaluation."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    bar = ProgressBar(console, verbose)
    bar.started(1000, 0)
    bar.evaluated(0, Evaluation("token_probability", 0.8675, 0.4, 400), 1.0)
    bar.stepped(report(998), 0.31)
    with console.capture() as capture:
        for renderable in bar._bars.get_renderables():
            console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_a_line_of_80_columns_shows_all_that_matters() -> None:
    (line,) = shown(verbose=False)
    assert len(line) <= 80
    assert line.startswith("training ")
    assert "999/1000" in line
    assert "--:--" in line or ":" in line
    assert line.endswith("loss 0.500 token_probability 86.8%")


def test_the_rest_is_on_a_second_line_when_asked_for() -> None:
    first, second = shown(verbose=True, width=120)
    assert first.endswith("token_probability 86.8%")
    for part in ("|g| 0.25", "eps 0.01", "0.31 s/step", "hit rate 75%", "shared_prefix 60%"):
        assert part in second


def event(kind: str, step: int, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "step": step, **fields}


ROWS = [
    event("evaluation", 0, metric=0.5),
    *(event("step", i, loss=1.0 - 0.1 * i) for i in range(4)),
    event("evaluation", 4, metric=0.6),
    *(event("step", i, loss=1e6) for i in (4, 5)),
    event("evaluation", 6, metric=0.1),
    event("rollback", 6, to=3),
    *(event("step", i, loss=0.5) for i in (3, 4)),
]


def test_what_was_rolled_back_is_told_apart() -> None:
    steps, left = in_force(ROWS, "step")
    assert [row["step"] for row in steps] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in left] == [pytest.approx(0.7), 1e6, 1e6]
    evaluations, gone = in_force(ROWS, "evaluation")
    assert ([row["step"] for row in evaluations], [row["step"] for row in gone]) == ([0], [4, 6])


def test_a_diverged_loss_does_not_flatten_the_plot() -> None:
    axes = Figure().subplots()
    draw_loss(axes, *in_force(ROWS, "step"))
    assert list(axes.get_ylim()) == pytest.approx([0.475, 1.025])
    smoothed = next(line for line in axes.get_lines() if line.get_label() == "mean of 2 steps")
    assert np.asarray(smoothed.get_xdata()).tolist() == [1, 2, 3, 4, 5], "one line, from left to right"


def test_runs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", str(tiny.config(tmp_path / "a", optimizer={"steps": 4})), "--json"]) == 0
    config = tiny.config(tmp_path / "b", optimizer={"steps": 3})
    assert main(["train", str(config), "--json"]) == 0
    (tmp_path / "b/run/summary.json").unlink()
    lines = (tmp_path / "b/run/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/run/metrics.jsonl").write_text("".join(lines[:3]))
    broken = tmp_path / "c"
    broken.mkdir()
    (broken / "journal.jsonl").write_text("?")
    capsys.readouterr()
    assert main(["runs", str(tmp_path), "--json"]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    summary = json.loads((tmp_path / "a/run/summary.json").read_text())
    assert (first["state"], first["steps"], first["of"], first["metric"]) == ("finished", 4, 4, summary["final_metric"])
    assert first["seconds"] == pytest.approx(summary["train_seconds"] + summary["evaluation_seconds"])
    assert (second["state"], second["steps"], second["of"]) == ("unfinished", 2, 3)
    assert second["metric"] == summary["base_metric"]
    assert third == {"run": str(broken), "state": "unreadable"} | dict.fromkeys(
        ("steps", "of", "metric_name", "metric", "seconds")
    )
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "a"]) == 0
    assert "a/run finished 4 of 4 accuracy" in " ".join(capsys.readouterr().out.split())
    assert main(["runs", "nowhere"]) == 2


class _Told(ProgressBar):
    """Notes what the bar of a restored run showed."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), width=80))
        self.lines: list[str] = []

    def restoring(self, done: int, total: int) -> None:
        super().restoring(done, total)
        with self._console.capture() as capture:
            for renderable in self._bars.get_renderables():
                self._console.print(renderable)
        self.lines.append(capture.get().strip())


def test_a_run_that_is_restored_shows_how_far_it_is(tmp_path: Path) -> None:
    """Whatever the steps are applied in, the weights are those of one step after the other."""
    steps = [StepReport(i, report(i).estimate, (0.25 + i,), 1e-2, Work()) for i in range(2 * TOGETHER + 3)]
    engine, other = (TorchEngine(tiny.model(), Full()) for _ in range(2))
    bar = _Told()
    advance(engine, steps, Spaces.of(tmp_path), bar.restoring)
    for step in steps:
        other.update(step.terms)
    assert all(torch.equal(engine.parameters[name], tensor) for name, tensor in other.parameters.items())
    *shown, last = bar.lines
    assert [re.findall(r"(\d+)/35 ", line) for line in shown] == [["0"], ["16"], ["32"]]
    assert all(line.startswith("restoring ") and len(line) <= 80 for line in shown)
    assert not last, "it goes when all is restored"


def test_rollbacks_move_the_bar_back() -> None:
    console = Console(file=io.StringIO(), width=80)
    bar = ProgressBar(console)
    bar.started(10, 0)
    bar.stepped(report(7), 0.1)
    bar.rolled_back(8, Rollback(3, "loss"), 0.5)
    with console.capture() as capture:
        console.print(next(iter(bar._bars.get_renderables())))
    assert " 3/10 " in capture.get()


def test_texts_without_a_reward_are_warned_of_once() -> None:
    said = io.StringIO()
    bar = ProgressBar(Console(file=said, width=80))
    bar.started(10, 0)
    for step, share in (
        (0, {"frac_reward_none": 0.0}),
        (1, {"frac_reward_none": 0.25}),
        (2, {"frac_reward_none": 0.5}),
    ):
        bar.stepped(replace(report(step), metrics={"reward": 1.0, **share}), 0.1)
    assert " ".join(said.getvalue().split()).count("no reward applies to 25% of the texts, which teach nothing") == 1
    assert "50%" not in said.getvalue()
