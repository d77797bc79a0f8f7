"""Choose among answer options: cross-entropy over the options, or over all that could be written; reported as accuracy."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from twinpass.core import Request, Score
from twinpass.objective import anchor
from twinpass.objective.base import Objective, Regularise
from twinpass.settings import STRICT
from twinpass.task.example import Example


@dataclass(frozen=True, config=STRICT)
class Choice(Objective):
    """An option's logit is its tokens' log-probabilities' ``score``: their "sum", or their "mean", as in MeZO.

    The loss is the cross-entropy of the right one, ``over`` the "options", or over the whole "vocabulary" at each token. The former leaves it to
    chance what the model writes when it is not asked to choose; under the latter it comes to write the right option.
    ``regularise`` by "kl" adds the divergence from the model as it was, on texts that it wrote before training (:mod:`twinpass.objective.anchor`).
    """

    score: Literal["sum", "mean"] = "sum"
    over: Literal["options", "vocabulary"] = "options"
    regularise: Regularise = "none"
    metric_name: ClassVar[str] = "accuracy"
    curved: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        found = []
        for example in examples:
            single = all(len(option) == 1 for option in example.options)  # what they have in common cancels
            relative = single and self.over == "options"
            found += [Request(example.prompt, option, example.suffix_start, relative) for option in example.options]
        return found + anchor.requests(examples)

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        losses = []
        scores, held = anchor.parted(examples, scores)
        with np.errstate(invalid="ignore"):
            for example, logits in zip(examples, self.logits(examples, scores), strict=True):
                losses.append(self._whole(logits) - logits[example.label])
        return float(np.mean(losses)) + anchor.loss(examples, held)

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        """Probability of the option (0 over the vocabulary) less 1 for the right one, for each of its tokens alike, over the examples (and its tokens)."""
        found = []
        scores, held = anchor.parted(examples, scores)
        for example, logits in zip(examples, self.logits(examples, scores), strict=True):
            error = self._shares(logits)
            error[example.label] -= 1.0
            found += list(error / len(examples))
        lengths = [1 if self.score == "sum" else len(score) for score in scores]
        return [
            np.full(len(score), slope / length) for score, slope, length in zip(scores, found, lengths, strict=True)
        ] + anchor.gradient(examples, held)

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """Softmax's: ``mean J^T (diag p - p p^T) J``; over the vocabulary the empirical Fisher matrix of the right options."""
        scores, held = anchor.parted(examples, scores)
        parts = [anchor.parted(examples, own) for own in tangents]
        total = len(examples) * anchor.curvature(examples, held, [own for _, own in parts])
        moved = [self.logits(examples, own) for own, _ in parts]
        if self.over == "vocabulary":
            right = np.array([[own[i][example.label] for i, example in enumerate(examples)] for own in moved])
            return np.asarray((right @ right.T + total) / len(examples))
        for i, logits in enumerate(self.logits(examples, scores)):
            p, j = _softmax(logits), np.array([own[i] for own in moved])
            centred = j - (j @ p)[:, None]
            total += (centred * p) @ centred.T
        return total / len(examples)

    def _whole(self, logits: NDArray[np.float64]) -> float:
        """What probabilities are shares of: all log-probabilities together have none left but 0."""
        return float(np.logaddexp.reduce(logits)) if self.over == "options" else 0.0

    def _shares(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        return _softmax(logits) if self.over == "options" else np.zeros_like(logits)

    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        scores, _ = anchor.parted(examples, scores)
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
    with np.errstate(invalid="ignore"):  # what is not finite is passed on, to whoever goes back from it
        return np.asarray(np.exp(logits - np.logaddexp.reduce(logits)))
