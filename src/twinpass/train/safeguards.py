"""What keeps zeroth-order training from running away: clipping against the run's own scale, and a divergence guard."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT, Count, NonNegative
from twinpass.steps import Rollback
from twinpass.train.history import History

SETTLED = 5
"""Gradients that must have been seen before their median means something."""

ERRORS = 3.0
"""Standard errors that a metric has to fall by before it counts."""

ALIVE, DEAD = 10, 0.9
"""Steps that are looked at, and the share of gradients of exactly 0 that a live run does not have."""

ClipWindow = Annotated[int, Field(ge=SETTLED, le=10**12)]


@dataclass(frozen=True, config=STRICT)
class MedianClip:
    """Clip |g| at ``factor`` times the median |g| of the last ``window`` probes. ``factor`` 0 switches it off."""

    factor: NonNegative = 4.0
    window: ClipWindow = 100

    def limit(self, history: History) -> float:
        """The largest |g| let through now."""
        recent: list[float] = []
        for step in reversed(history.steps):
            recent += [abs(g) for g in reversed(step.estimate.gradients)]
            if len(recent) >= self.window:
                break
        recent = recent[: self.window]
        if not self.factor or len(recent) < SETTLED:
            return math.inf
        return self.factor * float(np.median(recent))

    def __call__(self, gradients: Sequence[float], history: History) -> tuple[float, ...]:
        """The gradients, each brought inside [-limit, limit]."""
        limit = self.limit(history)
        return tuple(max(-limit, min(limit, g)) for g in gradients)


@dataclass(frozen=True, config=STRICT)
class DivergenceGuard:
    """Notice that a run has lost what it had gained.

    The mean loss of the last ``window`` steps must stay under ``best + loss * max(best, first / 4)``, where best and
    first are the lowest and first such means; the held-out metric must stay within ``metric`` of its best, or within
    :data:`ERRORS` standard errors of the difference, whichever is more: few rows say little.
    Either limit is switched off by 0. Losses must be finite in any case.
    """

    window: Count = 20
    loss: NonNegative = 1.0
    metric: NonNegative = 0.15

    def check(self, history: History, *, likelihood: bool = False, absolute: bool = True) -> Rollback | None:
        """A rollback if losses or metric say that the run has diverged: a pure function of the history.

        What it takes does not grow with the run. ``likelihood``: see :meth:`check_held_out`. Losses that are not ``absolute``
        are each step's own, and are not compared.
        """
        return (
            (self.check_losses(history) if absolute else None)
            or self.check_metric(history)
            or self.check_held_out(history, likelihood)
        )

    def check_losses(self, history: History) -> Rollback | None:
        """A rollback to the end of the best window, if the last window is far above it."""
        if not self.loss or len(history.steps) <= self.window:
            return None
        windows = history.windows(self.window)
        means, best = windows.means, windows.best[-1]
        limit = means[best] + self.loss * max(means[best], means[0] / 4)
        if means[-1] <= limit:
            return None
        return Rollback(
            best + self.window, f"mean loss {means[-1]:.3g} of the last {self.window} steps is above {limit:.3g}"
        )

    def check_metric(self, history: History) -> Rollback | None:
        """A rollback to the best evaluation, if the last is far below it, by more than chance would have it."""
        if not self.metric or len(history.evaluations) < 2:
            return None
        best, last = history.extremes.best, history.extremes.last
        if history.evaluations[last] >= history.evaluations[best] - self.metric:
            return None
        if history.evaluations[best] - history.evaluations[last] <= ERRORS * _error_of_difference(history, best, last):
            return None
        return Rollback(
            best,
            f"held-out metric {history.evaluations[last]:.3g} is far below the best, {history.evaluations[best]:.3g} at step {best}",
        )

    def check_held_out(self, history: History, likelihood: bool) -> Rollback | None:
        """A rollback to the lowest held-out loss, if the last is twice as high.

        Only where the loss is a likelihood of texts: one of options may double while more of them come out right.
        """
        if not likelihood or not self.loss or len(history.samples) < 2 or history.extremes.last not in history.samples:
            return None
        best, last = history.extremes.lowest, history.extremes.last
        lowest, now = history.samples[best].loss, history.samples[last].loss
        if now <= (1 + self.loss) * lowest:
            return None
        return Rollback(best, f"held-out loss {now:.3g} is far above the lowest, {lowest:.3g} at step {best}")

    def not_finite(self, history: History) -> Rollback:
        """A rollback for a loss that is not a number: to the end of the best window, or to the start."""
        windows = history.windows(self.window)
        to = windows.best[-1] + self.window if windows.best else 0
        return Rollback(to, "a loss was not a finite number")

    def spoilt(self, history: History, what: str) -> Rollback:
        """A rollback for weights that are of no use: like :meth:`not_finite`, but by one step at least."""
        return Rollback(min(self.not_finite(history).to, max(0, len(history.steps) - 1)), what)


def _error_of_difference(history: History, one: int, other: int) -> float:
    """The standard error of the difference of two evaluations, if both had the same true metric (the score test's).

    Rows of both count together; 0 where nothing is known of them, infinite for a single row.
    """
    samples = [history.samples.get(step) for step in (one, other)]
    known = [sample for sample in samples if sample is not None]
    if len(known) < len(samples):
        return 0.0
    difference = history.evaluations[one] - history.evaluations[other]
    squares = [math.inf if sample.error is None else sample.error**2 for sample in known]
    return math.sqrt(sum(squares) + difference**2 / (2 * known[0].rows))


def dead(history: History) -> str | None:
    """Why a run that goes on would learn nothing: of the last :data:`ALIVE` steps nearly all g are exactly 0, at one eps, or nearly all whole gradients.

    A step whose own loss is exactly 0 is no fault: it had nothing to learn from, such as texts that were all rewarded alike. A pure function of the history.
    """
    recent = history.steps[-ALIVE:]
    if len(recent) < ALIVE or max(s.estimate.eps for s in recent) > 2 * min(s.estimate.eps for s in recent):
        return None
    along = any(step.estimate.gradients for step in recent)
    found = [(step.estimate.loss, step.estimate.gradients if along else (step.observed.norm,)) for step in recent]
    total = sum(len(gradients) for _, gradients in found)
    zeros = sum(gradients.count(0.0) for loss, gradients in found if loss)
    if zeros < DEAD * total:
        return None
    last = recent[-1].estimate
    if not along:
        return (
            f"{zeros} of the last {total} gradients are exactly 0, at a loss of {last.loss:.6g} in the last step: nothing that is "
            "trained changes it, so that nothing is learned. The weights were thrown off: lower optimizer.lr"
        )
    return (
        f"{zeros} of the last {total} projected gradients are exactly 0: the losses of both signs were the same "
        f"numbers ({last.loss:.6g} in the last step), so that nothing is learned. If that is about where the loss began, "
        f"eps ({last.eps:.3g}) is too small for the model's precision: raise epsilon.value; if it is far higher, "
        "the weights were thrown off: lower optimizer.lr"
    )
