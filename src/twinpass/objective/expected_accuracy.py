"""Choose among answer options, told right or wrong of an option that is drawn: a policy gradient without its noise."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.settings import STRICT
from twinpass.task.example import Example

_OPTIONS = Choice()


@dataclass(frozen=True, config=STRICT)
class ExpectedAccuracy(Objective):
    """The probability that an option is wrong which is drawn by the model's own probabilities of the options.

    A reward of 1 for the right option and 0 for the others is all it goes by. Options are few, so that the expectation is
    summed up where sampled texts would have to stand for it (Williams 1992), and has a derivative. Its curvature is that of the
    options' distribution, so that steps along it are those of the natural policy gradient (Kakade 2001).
    """

    metric_name: ClassVar[str] = "accuracy"
    compares: ClassVar[bool] = True
    curved: ClassVar[bool] = True

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        return _OPTIONS.requests(examples)

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        shares = self._shares(examples, scores)
        return 1.0 - float(np.mean([own[example.label] for example, own in zip(examples, shares, strict=True)]))

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        """Of every option: the right one's probability, times the option's own less 1 if it is the right one, over the examples; for each of its tokens alike."""
        found = []
        for example, own in zip(examples, self._shares(examples, scores), strict=True):
            slopes = own[example.label] * own
            slopes[example.label] -= own[example.label]
            found += list(slopes / len(examples))
        return [np.full(len(score), slope) for score, slope in zip(scores, found, strict=True)]

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """Fisher's matrix of the options' distribution."""
        return _OPTIONS.curvature(examples, scores, tangents)

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return _OPTIONS.metric(examples, scores)

    @property
    def choice(self) -> Choice:
        """How options are compared."""
        return _OPTIONS

    def _shares(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[NDArray[np.float64]]:
        """Probabilities of every example's options."""
        return [np.exp(own - np.logaddexp.reduce(own)) for own in _OPTIONS.logits(examples, scores)]
