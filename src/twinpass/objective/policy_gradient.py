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

    That is so at temperature 1 from all tokens; at other temperatures, with top_p or top_k, or for texts that earlier weights wrote, it is biased.
    ``advantages`` has one number an example. All tokens of all texts count alike.

    ``beta`` times the divergence from ``reference`` is added: log-probabilities of the same tokens under the model as it was, an array
    an example. With r their difference from the model's own, the divergence's estimate is ``mean exp(r) - r - 1`` (Schulman's k3, as in GRPO).
    """

    metric_name: ClassVar[str] = "advantage"

    advantages: tuple[float, ...]
    reference: tuple[tuple[float, ...], ...] = ()
    beta: float = 0.0

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        return [Request(example.prompt, example.options[0], example.suffix_start) for example in examples]

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return self._minus_reward(scores) + self.beta * self.divergence(scores)

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        tokens = _tokens(scores)
        slopes = [
            np.full(len(score), -advantage / tokens) for advantage, score in zip(self.advantages, scores, strict=True)
        ]
        if not self.reference:
            return slopes
        return [
            slope + self.beta * -np.expm1(ratio) / tokens
            for slope, ratio in zip(slopes, self._ratios(scores), strict=True)
        ]

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return -self._minus_reward(scores)

    def divergence(self, scores: Sequence[Score]) -> float:
        """How far the model has gone from what it was, in nats a token; 0 where that is not known."""
        if not self.reference:
            return 0.0
        return float(sum((np.expm1(ratio) - ratio).sum() for ratio in self._ratios(scores))) / _tokens(scores)

    def _minus_reward(self, scores: Sequence[Score]) -> float:
        pairs = zip(self.advantages, scores, strict=True)
        return -float(sum(advantage * score.sum() for advantage, score in pairs)) / _tokens(scores)

    def _ratios(self, scores: Sequence[Score]) -> list[Score]:
        """``log p_reference - log p`` of every token, no more than :data:`FAR`."""
        return [
            np.minimum(np.asarray(before) - score, FAR) for before, score in zip(self.reference, scores, strict=True)
        ]


FAR = 10.0
"""Nats: a token that became so much less likely has a gradient of exp(10) already."""


def _tokens(scores: Sequence[Score]) -> int:
    return sum(map(len, scores))
