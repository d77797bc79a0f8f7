"""What a journal's records add up to: the steps that are in force, evaluations, rollbacks, and the state that follows from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from twinpass.compact import Compact
from twinpass.core import Term
from twinpass.errors import JournalError
from twinpass.steps import Steps
from twinpass.train.records import report_of
from twinpass.train.windows import Windows

Keep = Literal["best", "last"]
"""Which weights a run leaves."""


@dataclass(frozen=True, slots=True)
class Event:
    """Batch number ``draw`` was scored, the held-out rows were, or the weights went back; after ``step`` steps."""

    kind: Literal["draw", "evaluation", "rollback"]
    step: int
    draw: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What an evaluation says of itself beside its metric: its loss, its rows, and the standard error of the metric (None: one row has none)."""

    loss: float
    rows: int
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Extremes:
    """Steps of evaluations: of the best metric (the earliest of equal ones), of the lowest loss (-1: not known), and of the last."""

    best: int
    lowest: int
    last: int


@dataclass(slots=True)
class History:
    """What the records add up to: the steps still in force after rollbacks, and the state derived from them.

    ``draws`` counts all steps ever taken, rolled back or not: each has batches and seeds of its own. ``events`` lists
    all that happened, in order. ``evaluations`` holds metrics by step, ``samples`` what else is known of them, where it is.
    ``snapshots`` are hashes of what was stored, by step; some files may have gone since.
    ``changed`` is the ground that the run went on from, where that was accepted to be another than it began on.
    """

    steps: Steps = field(default_factory=Steps)
    evaluations: dict[int, float] = field(default_factory=dict)
    draws: int = 0
    events: Compact[Event] = field(default_factory=Compact)
    rollbacks: int = 0
    lr_scale: float = 1.0
    snapshots: dict[int, str] = field(default_factory=dict)
    samples: dict[int, Sample] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    _windows: dict[int, Windows] = field(default_factory=dict, compare=False, repr=False)
    _extremes: Extremes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Self:
        """Fold a journal's records.

        Raises:
            JournalError: one of them cannot follow those before it.
        """
        history = cls()
        for number, record in enumerate(records, 2):
            try:
                history.fold(record)
            except (KeyError, TypeError, ValueError, AttributeError, LookupError) as error:
                raise JournalError(
                    f"the journal's line {number} is sound, but says nothing that can follow the lines before it "
                    f"({type(error).__name__}: {error}); use the version of twinpass that wrote it"
                ) from error
        return history

    def fold(self, record: Mapping[str, Any]) -> None:
        """Take in one more record.

        Raises:
            ValueError, KeyError or TypeError: it cannot follow those before it.
        """
        match record["kind"]:
            case "step":
                self._step(record)
            case "evaluation":
                self._evaluation(record)
            case "rollback":
                self._rollback(record)
            case "snapshot":
                self.snapshots[record["step"]] = record["hash"]
            case "changes":
                self.changed |= record["ground"]
            case kind:
                raise ValueError(f"there is no record of kind {kind!r}")

    def _step(self, record: Mapping[str, Any]) -> None:
        report = report_of(record)
        if record["step"] != len(self.steps):
            raise ValueError(f"step {record['step']} after {len(self.steps)} steps")
        self.steps.append(report)
        self.events.append(Event("draw", record["step"], self.draws))
        self.draws += 1

    def _evaluation(self, record: Mapping[str, Any]) -> None:
        step, again = record["step"], record["step"] in self.evaluations
        self.evaluations[step] = record["metric"]
        self.samples.pop(step, None)
        if "loss" in record:
            self.samples[step] = Sample(record["loss"], record["rows"], record.get("error"))
        self.events.append(Event("evaluation", step))
        self._extremes = None if again or self._extremes is None else self._beyond(self._extremes, step)

    def _rollback(self, record: Mapping[str, Any]) -> None:
        to = record["to"]
        if to < 0 or record["discarded"] not in (0, 1):
            raise ValueError(f"a rollback to step {to} with {record['discarded']} draws")
        self.rollbacks += 1
        if record["discarded"]:
            self.events.append(Event("draw", len(self.steps), self.draws))
        self.events.append(Event("rollback", to))
        self.draws += record["discarded"]
        self.lr_scale = record["lr_scale"]
        self.steps.cut(to)
        self.evaluations = {step: value for step, value in self.evaluations.items() if step <= to}
        self.samples = {step: sample for step, sample in self.samples.items() if step <= to}
        self.snapshots = {step: value for step, value in self.snapshots.items() if step <= to}
        for windows in self._windows.values():
            windows.cut(to)
        self._extremes = None

    def windows(self, size: int) -> Windows:
        """Mean losses of ``size`` steps in a row, up to the last; what that costs does not grow with the run."""
        windows = self._windows.setdefault(size, Windows(size))
        windows.extend(self.steps)
        return windows

    @property
    def extremes(self) -> Extremes:
        """Of the evaluations in force; there has to be one."""
        if self._extremes is None:
            best = max(self.evaluations, key=lambda step: self.evaluations[step])
            lowest = min(self.samples, key=lambda step: self.samples[step].loss, default=-1)
            self._extremes = Extremes(best, lowest, max(self.evaluations))
        return self._extremes

    def _beyond(self, known: Extremes, step: int) -> Extremes:
        """The extremes once there is one more evaluation, after ``step`` steps."""
        best = step if self.evaluations[step] > self.evaluations[known.best] else known.best
        lower = step in self.samples and (known.lowest < 0 or self.samples[step].loss < self.samples[known.lowest].loss)
        return Extremes(best, step if lower else known.lowest, max(known.last, step))

    def plateaus(self, patience: int, every: int, until: int | None = None) -> int:
        """How often ``patience`` evaluations in a row (0: never) came to no more than the best before them.

        Of those that fall due after ``every`` steps, up to step ``until``: one that was made because time was up decides nothing.
        """
        found = stale = 0
        best = -math.inf
        for step in sorted(self.evaluations) if patience and every else ():
            if step % every or (until is not None and step > until):
                continue
            stale = 0 if self.evaluations[step] > best else stale + 1
            best = max(best, self.evaluations[step])
            if stale == patience:
                found, stale = found + 1, 0
        return found

    def kept(self, keep: Keep) -> int:
        """The step whose weights a run that ends now leaves: its last, or that of its best evaluation; the later of equal ones."""
        if keep == "last" or not self.evaluations:
            return len(self.steps)
        return max(self.evaluations, key=lambda step: (self.evaluations[step], step))

    @property
    def carried_from(self) -> int:
        """The step whose base-lane prefix was computed and has been carried since; the number of steps if there is none."""
        done = len(self.steps)
        moves = [event.kind for event in self.events if event.kind != "evaluation"]
        if not done or moves[-1:] == ["rollback"]:
            return done
        age = self.steps[-1].observed.prefix.age
        return done if age is None else done - 1 - age

    def draw_of(self, step: int) -> int:
        """The number of the draw that a step in force was made with; steps that share a lesson take their batches from the draw of its first."""
        return next(event.draw for event in reversed(self.events) if event.kind == "draw" and event.step == step)

    def terms(self, first: int = 0, last: int | None = None) -> list[Term]:
        """The updates of steps ``first`` to ``last`` - 1, in order.

        Raises:
            JournalError: they were made along whole gradients, and are no scalars.
        """
        if any(not step.estimate.probes for step in self.steps[first:last]):
            raise JournalError(
                'this run stepped along whole gradients ([estimator] kind = "backprop" or "feedback"), which are no list of scalars: '
                "only its snapshots can be had without its rows, in the folder snapshots"
            )
        return [term for step in self.steps[first:last] for term in step.terms]
