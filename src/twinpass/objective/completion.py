"""Make given texts likely: the mean negative log-probability of a completion's tokens."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from twinpass.core import Request, Score
from twinpass.objective import anchor
from twinpass.objective.base import Objective, Regularise
from twinpass.settings import STRICT
from twinpass.task.example import Example


@dataclass(frozen=True, config=STRICT)
class Completion(Objective):
    """Of options, the right one is the text. Every example counts alike: its loss is the mean over its own tokens, each read with the right ones before it.

    The metric is the geometric mean of their probabilities: ``exp(-loss)`` of an example.
    ``regularise`` by "kl" adds the divergence from the model as it was, on texts that it wrote before training (:mod:`twinpass.objective.anchor`).
    """

    regularise: Regularise = "none"

    metric_name: ClassVar[str] = "token_probability"
    curved: ClassVar[bool] = True
    likelihood: ClassVar[bool] = True

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        texts = [Request(example.prompt, example.options[example.label], example.suffix_start) for example in examples]
        return texts + anchor.requests(examples)

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        scores, held = anchor.parted(examples, scores)
        return -float(np.mean([score.mean() for score in scores])) + anchor.loss(examples, held)

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        scores, held = anchor.parted(examples, scores)
        return _slopes(scores) + anchor.gradient(examples, held)

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """The empirical Fisher matrix of the tokens: each one's derivatives, weighted as its loss is."""
        scores, held = anchor.parted(examples, scores)
        parts = [anchor.parted(examples, own) for own in tangents]
        weight = np.concatenate(_slopes(scores))
        j = np.array([np.concatenate(own) for own, _ in parts])
        return np.asarray((j * -weight) @ j.T) + anchor.curvature(examples, held, [own for _, own in parts])

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        scores, _ = anchor.parted(examples, scores)
        return float(np.mean([np.exp(score.mean()) for score in scores]))


def _slopes(scores: Sequence[Score]) -> list[Score]:
    """The derivative of the mean of texts' losses."""
    return [np.full(len(score), -1.0 / (len(score) * len(scores))) for score in scores]
