"""Schedules of eps, as functions of the step and of what earlier steps measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass as record
from dataclasses import field
from typing import Annotated

from pydantic import Field, InstanceOf
from pydantic.dataclasses import dataclass

from twinpass.core import StepReport
from twinpass.schedule.learning_rate import SHAPES
from twinpass.settings import STRICT, Count, Scale
from twinpass.steps import since


@record(frozen=True)
class Known:
    """What a schedule may look at.

    Args:
        steps: the steps in force, in order; the next is number ``len(steps)``.
        bias_order: that of the estimator.
        resolution: the relative spacing of the numbers that the model computes with.
        accepted: the share of reflections that the policy would accept at some eps, or None if it reflects nothing.
    """

    steps: Sequence[StepReport] = ()
    bias_order: int = 2
    resolution: float = 2**-23
    accepted: Callable[[float], float | None] = field(default=lambda eps: None)


class Epsilon(ABC):
    """The perturbation scale of each step."""

    @property
    def measures(self) -> bool:
        """Whether it tries other eps, and goes by what differences at them say."""
        return False

    @abstractmethod
    def at(self, step: int, known: Known) -> float:
        """Eps at ``step``: a pure function, so that a resumed run goes on as the first did."""

    def trials(self, step: int, eps: float, known: Known) -> tuple[float, ...]:
        """At which eps to try the first probe in this step, besides; for schedules that measure."""
        return ()


@dataclass(frozen=True, config=STRICT)
class ConstantEpsilon(Epsilon):
    """The same eps all along: ``value``."""

    value: Scale

    def at(self, step: int, known: Known) -> float:
        return self.value


@dataclass(frozen=True, config=STRICT)
class CosineEpsilon(Epsilon):
    """Half a cosine from ``start`` to ``end`` over ``steps``, and ``end`` from there on."""

    start: Scale
    end: Scale
    steps: Count

    def at(self, step: int, known: Known) -> float:
        shape = SHAPES["cosine"](min(1.0, step / self.steps))
        return shape * self.start + (1 - shape) * self.end


@dataclass(frozen=True, config=STRICT)
class JoinedEpsilon(Epsilon):
    """One of the ``schedules`` after another, each but the first from its step of the ``boundaries`` on, where it begins at its own step 0."""

    schedules: tuple[InstanceOf[Epsilon], ...]
    boundaries: Annotated[tuple[Count, ...], Field(strict=False)]

    def __post_init__(self) -> None:
        if not self.schedules:
            raise ValueError("schedules: there are none to join")
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(f"boundaries: {len(self.schedules)} schedules meet at {len(self.schedules) - 1} steps")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError("boundaries: must rise from one to the next")

    @property
    def measures(self) -> bool:
        return any(schedule.measures for schedule in self.schedules)

    def at(self, step: int, known: Known) -> float:
        schedule, begins = self._active(step)
        return schedule.at(step - begins, _since(known, begins))

    def trials(self, step: int, eps: float, known: Known) -> tuple[float, ...]:
        schedule, begins = self._active(step)
        return schedule.trials(step - begins, eps, _since(known, begins))

    def _active(self, step: int) -> tuple[Epsilon, int]:
        passed = sum(boundary <= step for boundary in self.boundaries)
        return self.schedules[passed], (0, *self.boundaries)[passed]


def _since(known: Known, begins: int) -> Known:
    return Known(since(known.steps, begins), known.bias_order, known.resolution, known.accepted)
