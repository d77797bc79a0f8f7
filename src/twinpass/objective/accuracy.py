"""Choose among answer options, told right or wrong and nothing else."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.settings import STRICT
from twinpass.task.example import Example

_OPTIONS = Choice()


@dataclass(frozen=True, config=STRICT)
class Accuracy(Objective):
    """The share of examples whose likeliest option, by the sum of its tokens' log-probabilities, is a wrong one.

    It has no derivative: lanes along random directions are all that can be held against each other.
    """

    metric_name: ClassVar[str] = "accuracy"
    compares: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        return _OPTIONS.requests(examples)

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return 1.0 - self.metric(examples, scores)

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return _OPTIONS.metric(examples, scores)

    @property
    def choice(self) -> Choice:
        """How options are compared."""
        return _OPTIONS
