"""Choose among answer options: cross-entropy over the options' log-probabilities, reported as accuracy."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.settings import STRICT
from twinpass.task.example import Example


@dataclass(frozen=True, config=STRICT)
class Choice(Objective):
    """An option's logit is its tokens' log-probabilities' ``score``: their "sum", or their "mean", as in MeZO.

    The loss is the cross-entropy of the right one.
    """

    score: Literal["sum", "mean"] = "sum"
    metric_name: ClassVar[str] = "accuracy"
    curved: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        found = []
        for example in examples:
            relative = all(len(option) == 1 for option in example.options)  # what they have in common cancels
            found += [Request(example.prompt, option, example.suffix_start, relative) for option in example.options]
        return found

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        losses = []
        with np.errstate(invalid="ignore"):
            for example, logits in zip(examples, self.logits(examples, scores), strict=True):
                losses.append(np.logaddexp.reduce(logits) - logits[example.label])
        return float(np.mean(losses))

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        """Probability of the option less 1 for the right one, for each of its tokens alike, over the examples (and its tokens)."""
        found = []
        for example, logits in zip(examples, self.logits(examples, scores), strict=True):
            error = _softmax(logits)
            error[example.label] -= 1.0
            found += list(error / len(examples))
        lengths = [1 if self.score == "sum" else len(score) for score in scores]
        return [
            np.full(len(score), slope / length) for score, slope, length in zip(scores, found, lengths, strict=True)
        ]

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """Softmax's: ``mean J^T (diag p - p p^T) J``."""
        total = np.zeros((len(tangents), len(tangents)))
        moved = [self.logits(examples, own) for own in tangents]
        for i, logits in enumerate(self.logits(examples, scores)):
            p, j = _softmax(logits), np.array([own[i] for own in moved])
            centred = j - (j @ p)[:, None]
            total += (centred * p) @ centred.T
        return total / len(examples)

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        right = [
            np.argmax(logits) == example.label
            for example, logits in zip(examples, self.logits(examples, scores), strict=True)
        ]
        return float(np.mean(right))

    def logits(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[NDArray[np.float64]]:
        """The logits of every example's options, an array each."""
        each = np.array([score.sum() if self.score == "sum" else score.mean() for score in scores])
        bounds = np.cumsum([len(example.options) for example in examples])[:-1]
        return np.split(each, bounds)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(logits - np.logaddexp.reduce(logits)))
