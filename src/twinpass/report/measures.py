"""What predictions are worth: measures of held-out rows, each with an interval, and two runs compared row by row."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinpass.report.interval import wilson

RESAMPLES = 2000
BINS = 15
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """Rows with options: the probabilities of each row's options, and the place of the right one."""

    shares: Sequence[F64]
    right: I64

    def __len__(self) -> int:
        return len(self.right)

    @property
    def chosen(self) -> I64:
        """The place of each row's most probable option."""
        return np.array([int(np.argmax(row)) for row in self.shares])

    def each(self) -> F64:
        """Whether each row is right: 1 or 0."""
        return np.array(self.chosen == self.right, np.float64)

    def measures(self) -> dict[str, Any]:
        """Accuracy, macro-F1, cross-entropy (nats) and expected calibration error with 95% intervals, and the table of confusions."""
        chosen, each = self.chosen, self.each()
        sure = np.array([float(np.max(row)) for row in self.shares])
        missed = np.array([-math.log(max(row[i], 1e-300)) for row, i in zip(self.shares, self.right, strict=True)])
        kinds = max(len(row) for row in self.shares)
        counts = np.zeros((kinds, kinds), np.int64)
        np.add.at(counts, (self.right, chosen), 1)
        return {
            "accuracy": within_bounds(len(self), lambda i: float(each[i].mean())),
            "macro_f1": within_bounds(len(self), lambda i: macro_f1(self.right[i], chosen[i])),
            "cross_entropy": with_interval(len(self), lambda i: float(missed[i].mean())),
            "calibration_error": with_interval(len(self), lambda i: calibration_error(sure[i], each[i])),
            "confusion": counts.tolist(),
        }

    def against(self, other: "Choices") -> dict[str, Any]:
        """How much more often this is right than ``other`` on the same rows, and the p-value of McNemar's exact test."""
        own, others = self.each(), other.each()
        gained, lost = int(np.sum(own > others)), int(np.sum(own < others))
        return {
            "measure": "accuracy",
            "difference": with_interval(len(self), lambda i: float((own[i] - others[i]).mean())),
            "only_first_right": gained,
            "only_second_right": lost,
            "test": "McNemar, exact",
            "p_value": mcnemar(gained, lost),
        }


@dataclass(frozen=True)
class ScoredTexts:
    """Rows with a text: the log-probabilities of its tokens, an array each."""

    scores: Sequence[F64]

    def __len__(self) -> int:
        return len(self.scores)

    def each(self) -> F64:
        """The mean log-probability of each row's tokens (nats)."""
        return np.array([score.mean() for score in self.scores])

    def measures(self) -> dict[str, Any]:
        """Loss (nats, every row alike), token probability and perplexity (every token alike), with 95% intervals."""
        each = self.each()
        sums = np.array([score.sum() for score in self.scores])
        counts = np.array([len(score) for score in self.scores])
        return {
            "token_probability": with_interval(len(self), lambda i: float(np.exp(each[i]).mean())),
            "loss": with_interval(len(self), lambda i: -float(each[i].mean())),
            "perplexity": with_interval(len(self), lambda i: float(np.exp(-sums[i].sum() / counts[i].sum()))),
        }

    def against(self, other: "ScoredTexts") -> dict[str, Any]:
        """How much more likely this makes a token than ``other`` on the same rows (nats), and the p-value of a paired bootstrap."""
        differences = self.each() - other.each()
        means = np.array([differences[rows].mean() for rows in _resampled(len(self))])
        tail = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
        return {
            "measure": "mean log-probability of a token",
            "difference": with_interval(len(self), lambda i: float(differences[i].mean())),
            "test": f"paired bootstrap, {RESAMPLES} resamples",
            "p_value": min(1.0, 2 * max(tail, 1 / RESAMPLES)),
        }


def macro_f1(right: I64, chosen: I64) -> float:
    """The mean over the kinds that occur of F1, the harmonic mean of precision and recall."""
    found = []
    for kind in np.union1d(right, chosen):
        hits = int(np.sum((right == kind) & (chosen == kind)))
        found.append(2 * hits / (int(np.sum(right == kind)) + int(np.sum(chosen == kind))))
    return float(np.mean(found))


def calibration_error(sure: F64, each: F64) -> float:
    """Expected calibration error (Guo et al. 2017): how far accuracy is from the probability, in bins of it, weighted by their rows."""
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    totals = np.bincount(bins, sure - each, minlength=BINS)
    return float(np.abs(totals).sum()) / len(sure)


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of ``gained`` and ``lost`` pairs that differ, were both as likely (McNemar 1947, exact)."""
    pairs = gained + lost
    tail = sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << pairs))


def with_interval(count: int, statistic: Callable[[I64], float]) -> Mapping[str, float]:
    """A statistic of all rows, and its 95% interval by the percentiles of a bootstrap over rows."""
    values = [statistic(rows) for rows in _resampled(count)]
    low, high = np.percentile(values, [2.5, 97.5])
    return {"value": statistic(np.arange(count)), "low": float(low), "high": float(high)}


def within_bounds(count: int, statistic: Callable[[I64], float]) -> Mapping[str, float]:
    """The same of a statistic that is 1 where all rows are right, and 0 where none is.

    Resampling takes both for certain, so that the interval is Wilson's there.
    """
    found = with_interval(count, statistic)
    if 0 < found["value"] < 1:
        return found
    low, high = wilson(found["value"], count)
    return {"value": found["value"], "low": max(low, 0.0), "high": min(high, 1.0)}


def _resampled(count: int) -> Iterator[I64]:
    """Rows drawn with replacement, :data:`RESAMPLES` times, the same each time."""
    generator = np.random.Generator(np.random.Philox(0))
    for _ in range(RESAMPLES):
        yield generator.integers(0, count, count)
