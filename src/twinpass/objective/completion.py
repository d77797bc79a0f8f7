"""Make given texts likely: the mean negative log-probability of a completion's tokens."""

from collections.abc import Sequence

import numpy as np

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.task.example import Example


class Completion(Objective):
    """Every example counts alike: its loss is the mean over its own tokens, each read with the right ones before it.

    The metric is the geometric mean of their probabilities: ``exp(-loss)`` of an example.
    """

    metric_name = "token_probability"

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        return [Request(example.prompt, example.options[0], example.suffix_start) for example in examples]

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return -float(np.mean([score.mean() for score in scores]))

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return float(np.mean([np.exp(score.mean()) for score in scores]))
