"""Weights along exact gradients come back from snapshots."""

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import report
from safetensors.torch import load_file

from twinpass.compact import Compact
from twinpass.engine.base import AdamStep
from twinpass.engine.embedded.descent.moments import Moments
from twinpass.errors import JournalError
from twinpass.estimate.backprop import Backprop
from twinpass.estimate.feedback import Feedback
from twinpass.steps import Steps
from twinpass.train.adamw import AdamW
from twinpass.train.batches import batch
from twinpass.train.descent import GradientSteps, graph_bytes, lasting
from twinpass.train.history import Event, History


class Restoring:
    """An engine that can be restored, and nothing else."""

    def restore(self, file: Path) -> str:
        return file.read_text()


def steps_in(folder: Path) -> GradientSteps:
    for done in (4, 6):
        (folder / f"step-{done}.safetensors").write_text(f"hash {done}")
    return GradientSteps(cast(Any, Restoring()), cast(Any, None), AdamW(steps=8, snapshot_every=2), folder)


def test_where_a_snapshot_lies_no_step_is_taken_again_and_the_end_is_told(tmp_path: Path) -> None:
    history, told = History(snapshots={2: "gone", 4: "hash 4", 6: "another"}), list[tuple[int, int]]()
    steps = steps_in(tmp_path)
    steps.rebuild(history, 4, lambda done, total: told.append((done, total)))
    assert told == [(4, 4)]
    steps.rebuild(history, 0, lambda done, total: told.append((done, total)))
    assert told == [(4, 4)], "there is nothing to do for the weights that a run begins with"
    with pytest.raises(JournalError, match="is not what the journal says"):
        steps.rebuild(history, 6)
    assert [steps.stored(step, history) for step in (1, 3, 4, 7)] == [False, False, True, True], "one has gone"


def test_snapshots_are_due_at_their_intervals_and_at_the_end(tmp_path: Path) -> None:
    steps = GradientSteps(cast(Any, None), cast(Any, None), AdamW(steps=7, snapshot_every=3), tmp_path)
    assert [done for done in range(8) if steps.due(done, History())] == [3, 6, 7]
    assert not steps.due(3, History(snapshots={3: "hash"}))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(1, 5), st.lists(st.integers(1, 1000), max_size=4))
def test_a_long_run_leaves_few_snapshots_and_needs_none_that_has_gone(
    count: int, apart: int, better: list[int]
) -> None:
    """A run that is stored every few steps, and whose evaluations get better and better."""
    there: set[int] = set()
    for done in range(apart, apart * count + 1, apart):
        seen = {step: step / 2000 for step in better if step <= done}
        last = lasting(History(snapshots=dict.fromkeys(range(apart, done + 1, apart), "hash"), evaluations=seen))
        there.add(done)
        assert done in last
        assert last <= there, "what has gone is asked for again"
        there = last
        assert not seen or max(seen) < apart or max(seen) // apart * apart in there, "the best evaluation's weights"
    assert len(there) <= 3 + 2 * math.log2(count)


def test_snapshots_that_stay_are_closer_together_the_nearer_they_are_to_the_end() -> None:
    assert lasting(History(snapshots=dict.fromkeys(range(1, 17), "hash"))) == {8, 12, 14, 15, 16}
    best = {2: 0.1, 5: 0.9, 9: 0.5}
    assert lasting(History(snapshots=dict.fromkeys(range(1, 17), "hash"), evaluations=best)) == {5, 8, 12, 14, 15, 16}


class Stop(Exception):
    """How far a step came."""


class Goal:
    """What teaches once for two steps."""

    teaches = False

    def steps_per_lesson(self, batch_size: int) -> int:
        return 2

    def teach(self, engine: Any, rows: list[Any], at: Any) -> None:
        raise Stop(f"taught {rows}")

    def learn(self, rows: list[Any], lesson: Any) -> None:
        raise Stop(f"learned {lesson} of {rows}")


class Lesson:
    def part(self, number: int, parts: int) -> str:
        return f"part {number} of {parts}"


def test_a_lesson_that_the_journal_has_is_not_given_again(tmp_path: Path) -> None:
    plan = SimpleNamespace(objective=Goal(), train=range(20), seed=3, writing=lambda step, draw: None)
    steps = GradientSteps(cast(Any, None), cast(Any, plan), AdamW(batch_size=4), tmp_path)
    drawn = [batch(range(20), 4, 3, draw) for draw in range(7)]
    with pytest.raises(Stop, match=f"^taught {re.escape(str([*drawn[0], *drawn[1]]))}$"):
        steps.take(0, 0, 0.1, History())
    first = replace(report(2), lesson=cast(Any, Lesson()))
    events = Compact([Event("draw", 0, 0), Event("draw", 1, 1), Event("draw", 2, 5)])
    with pytest.raises(Stop, match=f"^learned part 1 of 2 of {re.escape(str(drawn[6]))}$"):
        steps.take(3, 6, 0.1, History(Steps([report(0), report(1), first]), events=events))


@pytest.mark.parametrize("known", [False, True])
def test_where_texts_are_written_nothing_is_kept_before_and_after(known: bool, tmp_path: Path) -> None:
    """A step that is taken again, whose texts the journal may have, is made in the same company."""
    seen: list[str] = []

    class Teaching(Goal):
        teaches = True

        def steps_per_lesson(self, batch_size: int) -> int:
            return 1

        def teach(self, engine: Any, rows: list[Any], at: Any) -> Any:
            seen.append("teach")
            return SimpleNamespace(lesson=Lesson())

    engine = SimpleNamespace(forget=lambda: seen.append("forget"))
    plan = SimpleNamespace(objective=Teaching(), train=range(20), seed=3, writing=lambda step, draw: None)
    first = replace(report(0), lesson=cast(Any, Lesson()))
    history = History(Steps([first]), events=Compact([Event("draw", 0, 0)])) if known else History()
    with pytest.raises(Stop, match="learned part 0 of 1"):
        GradientSteps(cast(Any, engine), cast(Any, plan), AdamW(batch_size=4), tmp_path).take(0, 0, 0.1, history)
    assert seen == (["forget"] if known else ["forget", "teach", "forget"])


class Warmed:
    """A goal that notes how many rows it is to warm an engine with."""

    teaches, portion = False, 2

    def __init__(self) -> None:
        self.rows: list[int] = []

    def warm(self, engine: Any, examples: Any, probes: Any, since: Any) -> None:
        self.rows.append(len(examples))


@pytest.mark.parametrize(
    ("step", "there", "rows"),
    [(0, True, []), (2, True, []), (2, False, [4, 4]), (4, True, [4, 4, 2, 1, 4, 4]), (4, False, [4, 4, 2, 1, 4, 4])],
)
def test_replay_reads_what_the_run_had_read_unless_a_snapshot_is_there(
    step: int, there: bool, rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        (tmp_path / "step-2.safetensors").touch()
    events = [
        Event("draw", 0, 0),
        Event("draw", 1, 1),
        Event("evaluation", 2),
        Event("draw", 2, 2),
        Event("draw", 3, 3),
    ]
    history = History(snapshots={2: "hash"}, events=Compact([*events, Event("evaluation", 4), Event("draw", 4, 4)]))
    goal, rebuilt = Warmed(), list[int]()
    plan = SimpleNamespace(objective=goal, train=range(20), held_out=range(3), seed=3)
    steps = GradientSteps(cast(Any, None), cast(Any, plan), AdamW(batch_size=4), tmp_path)
    monkeypatch.setattr(GradientSteps, "rebuild", lambda self, history, step, told: rebuilt.append(step))
    steps.replay(history, step)
    assert (goal.rows, rebuilt) == (rows, [step])


def test_a_graph_is_as_large_as_that_of_the_longest_examples() -> None:
    """By what is read after the activation point, which is all that has a graph."""
    sizes = (5, 0), (2, 0), (9, 0), (10, 8), (7, 0), (3, 0)
    examples = [SimpleNamespace(prompt=[0] * size, options=[[0]], suffix_start=start) for size, start in sizes]
    plan = SimpleNamespace(
        train=examples,
        optimizer=AdamW(batch_size=2),
        objective=SimpleNamespace(largest=lambda examples: [len(example.prompt) for example in examples]),
    )
    engine = SimpleNamespace(graph_bytes=sum)
    assert graph_bytes(cast(Any, engine), cast(Any, plan)) == 9 + 7


@pytest.mark.parametrize(("estimator", "taken"), [(Backprop(), "gradient"), (Feedback(), "feedback")])
def test_a_gradient_is_taken_as_the_estimator_says(estimator: Backprop, taken: str, tmp_path: Path) -> None:
    class Engine:
        def gradient(self, requests: Any, slopes: Any) -> None:
            raise Stop("gradient")

        def feedback(self, requests: Any, slopes: Any) -> None:
            raise Stop("feedback")

    goal = SimpleNamespace(
        teaches=False,
        steps_per_lesson=lambda batch_size: 1,
        teach=lambda engine, rows, at: None,
        learn=lambda rows, lesson: (SimpleNamespace(requests=list), rows),
    )
    plan = SimpleNamespace(
        objective=goal, train=range(20), seed=3, estimator=estimator, writing=lambda step, draw: None
    )
    with pytest.raises(Stop, match=f"^{taken}$"):
        GradientSteps(cast(Any, Engine()), cast(Any, plan), AdamW(), tmp_path).take(0, 0, 0.1, History())


def test_moments_are_corrected_from_the_first_step_on() -> None:
    kind = AdamW(beta1=0.5, beta2=0.75, eps=1e-3, decay=0.125, max_norm=2.0)
    assert kind.at(0, 0.1) == AdamStep(1, 0.1, 0.5, 0.75, 1e-3, 0.125, 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_snapshot_is_a_file_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    own = {"turned": torch.arange(6.0).view(2, 3).to(dtype).t(), "one": torch.tensor(0.5, dtype=dtype)}
    Moments().store(own, tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert found.keys() == {"weights.turned", "weights.one"}
    assert all(torch.equal(found[f"weights.{name}"], tensor) for name, tensor in own.items())
    assert all(found[f"weights.{name}"].dtype is dtype for name in own)
