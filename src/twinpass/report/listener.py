"""What a run tells while it goes on."""

from collections.abc import Sequence

from twinpass.core import Evaluation, StepReport
from twinpass.steps import Rollback


class Listener:
    """Told what happens during a run; the default does nothing."""

    def started(self, steps: int, done: int) -> None:
        """The loop begins with ``done`` of ``steps`` behind it."""

    def restoring(self, done: int, total: int) -> None:
        """A run that is resumed, or goes back, has brought its weights over ``done`` of ``total`` steps of its journal."""

    def warming(self, done: int, total: int) -> None:
        """A resumed run has rebuilt ``done`` of ``total`` parts of its cache."""

    def stepped(self, report: StepReport, seconds: float) -> None:
        """A step was made."""

    def evaluating(self, done: int, total: int) -> None:
        """``done`` of ``total`` held-out examples are scored."""

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        """Held-out examples were scored after ``step`` steps."""

    def rolled_back(self, step: int, rollback: Rollback, lr_scale: float) -> None:
        """After ``step`` steps the run went back to an earlier one and slowed down."""

    def slowed(self, step: int, lr_scale: float) -> None:
        """The evaluation after ``step`` steps makes a plateau: what is left of the learning rate."""


class Listeners(Listener):
    """Passes every event on to several listeners."""

    def __init__(self, members: Sequence[Listener]) -> None:
        self._members = members

    def started(self, steps: int, done: int) -> None:
        for member in self._members:
            member.started(steps, done)

    def restoring(self, done: int, total: int) -> None:
        for member in self._members:
            member.restoring(done, total)

    def warming(self, done: int, total: int) -> None:
        for member in self._members:
            member.warming(done, total)

    def stepped(self, report: StepReport, seconds: float) -> None:
        for member in self._members:
            member.stepped(report, seconds)

    def evaluating(self, done: int, total: int) -> None:
        for member in self._members:
            member.evaluating(done, total)

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        for member in self._members:
            member.evaluated(step, evaluation, seconds)

    def rolled_back(self, step: int, rollback: Rollback, lr_scale: float) -> None:
        for member in self._members:
            member.rolled_back(step, rollback, lr_scale)

    def slowed(self, step: int, lr_scale: float) -> None:
        for member in self._members:
            member.slowed(step, lr_scale)
