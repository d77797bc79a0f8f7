"""Make given texts likely: the mean negative log-probability of a completion's tokens."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.settings import STRICT
from twinpass.task.example import Example


@dataclass(frozen=True, config=STRICT)
class Completion(Objective):
    """Of options, the right one is the text. Every example counts alike: its loss is the mean over its own tokens, each read with the right ones before it.

    The metric is the geometric mean of their probabilities: ``exp(-loss)`` of an example.
    """

    metric_name: ClassVar[str] = "token_probability"
    curved: ClassVar[bool] = True
    likelihood: ClassVar[bool] = True

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        return [Request(example.prompt, example.options[example.label], example.suffix_start) for example in examples]

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return -float(np.mean([score.mean() for score in scores]))

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        return [np.full(len(score), -1.0 / (len(score) * len(scores))) for score in scores]

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """The empirical Fisher matrix of the tokens: each one's derivatives, weighted as its loss is."""
        weight = np.concatenate(self.gradient(examples, scores))
        j = np.array([np.concatenate(own) for own in tangents])
        return np.asarray((j * -weight) @ j.T)

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return float(np.mean([np.exp(score.mean()) for score in scores]))
