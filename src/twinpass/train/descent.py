"""Steps along whole gradients: taken, and taken again from the last snapshot.

No scalars say what such a step did. The journal names its batch by the number of the draw (that of the first step that shares its
texts), and snapshots of weights and moments by a hash; the weights of any step come back by the snapshot before it and the steps
since, over the same rows, to the same bits. So a snapshot may go that is far behind: only seconds are lost.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from twinpass.core import Observation, StepReport
from twinpass.engine.base import Engine, Gradient
from twinpass.errors import JournalError
from twinpass.objective.goal import portions
from twinpass.report.files import written
from twinpass.task.example import Example
from twinpass.train.batches import batch
from twinpass.train.history import History
from twinpass.train.optimizer import GradientOptimizer

if TYPE_CHECKING:
    from twinpass.train.plan import TrainingPlan

NEAR = 1e-3
"""How far, relatively, a loss that is taken again may be from the journal's: keys and values that were evicted come back to rounding only."""


@dataclass(frozen=True)
class GradientSteps:
    """An engine along a plan's gradients; ``snapshots`` is the folder that they lie in."""

    engine: Engine
    plan: "TrainingPlan"
    optimizer: GradientOptimizer
    snapshots: Path

    def fresh(self) -> None:
        """Where texts are written, nothing is kept from step to step: a step that is taken again is made of its own texts alone."""
        if self.plan.objective.teaches:
            self.engine.forget()

    def take(self, step: int, draw: int, lr: float, history: History) -> tuple[StepReport, Gradient]:
        """What a step finds; :meth:`apply` makes it. What ``history`` knows of a lesson is not found out again.

        Steps that share a lesson have it from the first of them, which the journal names it with.
        """
        plan, goal, taught = self.plan, self.plan.objective, None
        parts = goal.steps_per_lesson(self.optimizer.batch_size)
        first = step - step % parts
        drawn = history.draw_of(first) if first < len(history.steps) else draw
        rows = [self._rows(drawn + part) for part in range(parts)]
        lesson = history.steps[first].lesson if first < len(history.steps) else None
        self.fresh()
        if lesson is None:
            taught = goal.teach(self.engine, [row for own in rows for row in own], plan.writing(step, drawn))
            self.fresh()
        whole = lesson if taught is None else taught.lesson
        objective, examples = goal.learn(rows[step - first], None if whole is None else whole.part(step - first, parts))
        taken = self.engine.feedback if plan.estimator.fed_back else self.engine.gradient
        gradient = taken(objective.requests(examples), lambda scores: objective.gradient(examples, scores))
        estimate = plan.estimator.estimate((), 0.0, [objective.loss(examples, gradient.scores.values[0])])
        scores, observed = gradient.scores, Observation(norm=gradient.norm)
        report = StepReport(
            step, estimate, (), lr, scores.work, scores.cache, observed, lesson=whole if step == first else None
        )
        if taught is not None:
            report = replace(report, work=report.work + taught.work, metrics=taught.metrics)
        return report, gradient

    def _rows(self, draw: int) -> list[Example]:
        return batch(self.plan.train, self.optimizer.batch_size, self.plan.seed, draw)

    def beginning(self, step: int) -> int:
        """The first step that shares its lesson with this one: gone back to, other texts are written."""
        return step - step % self.plan.objective.steps_per_lesson(self.optimizer.batch_size)

    def apply(self, report: StepReport, gradient: Gradient) -> None:
        """The optimizer's step, at the report's learning rate."""
        self.engine.descend(gradient, self.optimizer.at(report.step, report.lr))

    def due(self, done: int, history: History) -> bool:
        """Whether the weights after ``done`` steps are to be stored."""
        last = done == self.optimizer.steps
        return done > 0 and done not in history.snapshots and (last or done % self.optimizer.snapshot_every == 0)

    def stored(self, step: int, history: History) -> bool:
        """Whether a snapshot from before ``step`` brings back all that was trained, so that the weights of the beginning are not needed."""
        return self._before(step, history) > 0

    def thin(self, history: History) -> None:
        """Remove snapshots that are not :func:`lasting`, once the journal names a later one."""
        for done in history.snapshots.keys() - lasting(history):
            with suppress(OSError):  # it takes room, and does no harm
                self._file(done).unlink()

    def _there(self, history: History) -> list[int]:
        """After how many steps there are snapshots."""
        return [done for done in sorted(history.snapshots) if self._file(done).exists()]

    def _before(self, step: int, history: History) -> int:
        """The last snapshot at or before ``step``; 0: there is none."""
        return max((done for done in self._there(history) if done <= step), default=0)

    def store(self, done: int) -> dict[str, Any]:
        """Write a snapshot, on the disk before anything names it; returns its journal line.

        Raises:
            StorageError: it cannot be written.
        """
        return {"kind": "snapshot", "step": done, "hash": written(self._file(done), self.engine.store)}

    def rebuild(self, history: History, step: int, told: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Bring an engine at theta_0, or anywhere if a snapshot is :meth:`stored`, which has been warmed, to the weights after ``step`` steps in force.

        ``told`` hears how many of how many are done.

        Raises:
            JournalError: a snapshot is not the one of the journal, or a loss that is taken again is another.
        """
        first = self._before(step, history)
        if first:
            self._restore(first, history.snapshots[first])
        for number in range(first, step):
            told(number, step)
            known = history.steps[number].estimate.loss
            report, gradient = self.take(number, history.draw_of(number), history.steps[number].lr, history)
            if not abs(report.estimate.loss - known) <= NEAR * max(1.0, abs(known)):
                raise JournalError(
                    f"step {number}, taken again, gave a loss of {report.estimate.loss:.6g}, and the journal has {known:.6g}: "
                    f"the rows or the machine's arithmetic are others; there are snapshots after steps {self._there(history)}"
                )
            self.apply(report, gradient)
        if step:
            told(step, step)

    def replay(self, history: History, step: int, told: Callable[[int, int], None] = lambda done, total: None) -> None:
        """The same for an engine that has seen nothing: first all that the run scored until then, in the same order and company."""
        if step and step != self._before(step, history) and not self.plan.objective.teaches:
            self._warm(history, step)
        self.rebuild(history, step, told)

    def _warm(self, history: History, step: int) -> None:
        plan, goal = self.plan, self.plan.objective
        last = max(i for i, event in enumerate(history.events) if event.kind == "draw" and event.step == step - 1)
        for event in history.events[: last + 1]:
            parts = (
                [batch(plan.train, self.optimizer.batch_size, plan.seed, event.draw)] if event.kind == "draw" else []
            )
            for examples in portions(plan.held_out, goal.portion) if event.kind == "evaluation" else parts:
                goal.warm(self.engine, examples, [], frozenset())

    def _restore(self, done: int, known: str) -> None:
        file = self._file(done)
        try:
            found = self.engine.restore(file)
        except (OSError, SafetensorError) as error:
            raise JournalError(f"{file} cannot be read ({error}); restore it from a backup") from error
        if found != known:
            raise JournalError(f"{file} is not what the journal says; restore it from a backup")

    def _file(self, done: int) -> Path:
        return self.snapshots / f"step-{done}.safetensors"


def lasting(history: History) -> set[int]:
    """Which snapshots stay: the nearer to the end, the closer together, and the one that the best evaluation's weights come back by.

    The i-th of n stays while n - i is no more than twice the largest power of two that divides i, as the longer marks of a ruler are seen
    from further off: of 250 a dozen. What has gone never has to come back while n grows.
    """
    stored = sorted(history.snapshots)
    best = history.kept("best")
    marks = {done for i, done in enumerate(stored, 1) if len(stored) - i <= 2 * (i & -i)}
    return marks | set([done for done in stored if done <= best][-1:])


def descent_of(engine: Engine, plan: "TrainingPlan", run: Path) -> GradientSteps | None:
    """The descent of a plan that steps along gradients, in a run folder; None: its updates are scalars."""
    if not isinstance(plan.optimizer, GradientOptimizer):
        return None
    return GradientSteps(engine, plan, plan.optimizer, run / "snapshots")


def graph_bytes(engine: Engine, plan: "TrainingPlan") -> int:
    """About the bytes that a step's graph, gradient and moments take at the most: those of the longest examples."""
    longest = sorted(
        plan.train, key=lambda example: sum(map(len, example.options)) - example.suffix_start + len(example.prompt)
    )
    return engine.graph_bytes(plan.objective.largest(longest[-plan.optimizer.batch_size :]))
