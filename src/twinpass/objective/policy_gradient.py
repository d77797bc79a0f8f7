"""Texts that were written, made more likely the better they were (Williams 1992; GRPO's advantages, arXiv 2402.03300)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.task.example import Example


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """``- sum advantage log p(text) / tokens``: its gradient, where the texts were sampled, is that of minus the expected reward.

    That is so at temperature 1 from all tokens; at other temperatures, or with top_p or top_k, it is biased.
    ``advantages`` has one number an example. All tokens of all texts count alike.
    """

    metric_name: ClassVar[str] = "advantage"

    advantages: tuple[float, ...]

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        return [Request(example.prompt, example.options[0], example.suffix_start) for example in examples]

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return float(sum(float(slope @ score) for slope, score in zip(self._slopes(scores), scores, strict=True)))

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        return self._slopes(scores)

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return -self.loss(examples, scores)

    def _slopes(self, scores: Sequence[Score]) -> list[Score]:
        tokens = sum(map(len, scores))
        return [
            np.full(len(score), -advantage / tokens) for advantage, score in zip(self.advantages, scores, strict=True)
        ]
