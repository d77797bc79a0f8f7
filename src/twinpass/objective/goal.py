"""What training makes better: measured of lanes in a step, and reported of rows that are held out.

The trainer knows this contract alone. What a lane is worth comes from its scores (:class:`twinpass.objective.base.Objective`), or from
what it writes (:class:`twinpass.objective.population.Population`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinpass.core import CacheStatistics, Evaluation, Lane, Lesson, PrefixReport, Probe, Request, Score, Work
from twinpass.engine.base import Engine
from twinpass.errors import ModelError
from twinpass.reuse.plan import Spans
from twinpass.task.example import Example

if TYPE_CHECKING:
    from twinpass.objective.base import Objective

PORTION = 128
"""Held-out examples that are scored at once: what is left to run of each, where its prompt is kept, is a few tokens."""
FEW = 32
"""The same where texts are written, or where answers are given as they are found."""

T = TypeVar("T")

Progress = Callable[[int], None]
"""Told how many held-out examples are done."""


def silent(done: int) -> None:
    """Tell nobody."""


def portions(examples: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Held-out examples as they are measured, ``size`` at a time."""
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


@dataclass(frozen=True, slots=True)
class At:
    """Where a run stands: ``step`` of ``steps``; random numbers come from ``seed``."""

    seed: int = 0
    step: int = 0
    steps: int = 0


START = At()


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss of every lane, and what measuring them took.

    ``scores[lane][request]`` are what losses were made of, where they were made of scores. ``metrics`` are for people.
    """

    losses: tuple[float, ...]
    work: Work
    cache: CacheStatistics = field(default_factory=CacheStatistics)
    prefix: PrefixReport = field(default_factory=PrefixReport)
    scores: Sequence[Sequence[Score]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Taught:
    """A lesson, and what finding it took."""

    lesson: Lesson
    work: Work
    metrics: Mapping[str, float]


class Goal(ABC):
    """What is minimised, and what is reported.

    One that ``compares`` needs examples with options to choose from; a ``curved`` one has :meth:`gradient` and :meth:`curvature`.
    """

    metric_name: ClassVar[str]
    compares: ClassVar[bool] = False
    curved: ClassVar[bool] = False

    differentiable: ClassVar[bool] = True
    """Whether a goal of scores has a derivative by them: see :meth:`gradient`."""

    likelihood: ClassVar[bool] = False
    """Whether the loss is the negative log-likelihood of texts, so that one that doubles is a divergence."""

    teaches: ClassVar[bool] = False
    """Whether whole gradients are of texts that are written first: see :meth:`teach`."""

    absolute: ClassVar[bool] = True
    """Whether losses of different steps can be compared, so that rising ones are a divergence."""

    portion: ClassVar[int] = PORTION
    """Held-out examples that are measured at once."""

    def steps_per_lesson(self, batch_size: int) -> int:
        """How many steps of so many rows share what :meth:`teach` finds, each a part of it."""
        return 1

    def longest(self, batch_size: int) -> str:
        """What makes some steps of so many rows along whole gradients take much longer than others, if anything does."""
        return ""

    def close(self) -> None:
        """Give back what is held outside this process."""
        return

    def require(self, examples: Sequence[Example]) -> None:
        """Refuse rows that lack what is asked of them.

        Raises:
            TwinpassError: saying what they lack.
        """
        return

    @abstractmethod
    def measure(
        self, engine: Engine, examples: Sequence[Example], lanes: Sequence[Lane], spans: Spans | None, at: At
    ) -> Measured:
        """The loss of every lane on a batch; lanes whose prefix is not their own take it over ``spans``."""

    def teach(self, engine: Engine, examples: Sequence[Example], at: At) -> Taught | None:
        """What whole gradients are taken of, where it has to be found out by writing: see :meth:`learn`. None: the examples say it."""
        return None

    def learn(self, examples: Sequence[Example], lesson: Lesson | None) -> "tuple[Objective, Sequence[Example]]":
        """The objective whose gradient improves this goal, and the examples that it is taken of.

        Raises:
            ModelError: there is none.
        """
        raise ModelError(f"{type(self).__name__} has no scores to differentiate; use 'spsa' along random directions")

    @abstractmethod
    def evaluate(
        self, engine: Engine, examples: Sequence[Example], progress: Progress = silent, at: At = START
    ) -> Evaluation:
        """Metric and loss of the weights as they stand; ``progress`` is told how many examples are done."""

    @abstractmethod
    def largest(self, examples: Sequence[Example]) -> list[Request]:
        """What has to be scored of a batch at the most, where a whole gradient is taken."""

    @abstractmethod
    def warm(
        self, engine: Engine, examples: Sequence[Example], probes: Sequence[Probe], since: Set[int | None]
    ) -> None:
        """Let an engine keep again what :meth:`measure` or :meth:`evaluate` of these examples left in it: see :meth:`Engine.warm`."""

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        """The loss's derivative with respect to every score, in their shapes.

        Raises:
            ModelError: the loss has none.
        """
        raise ModelError(f"{type(self).__name__} has no derivative; use estimator.kind = 'spsa', which needs none")

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """``t_k^T C t_l`` [q, q] for q directions of the scores, with the loss's curvature C by them: positive semidefinite.

        Raises:
            ModelError: the loss has none.
        """
        raise ModelError(f"{type(self).__name__} has no curvature; use estimator.kind = 'spsa', which needs none")
