"""What keeps zeroth-order training from running away: clipping against the run's own scale, and a divergence guard."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.core import Rollback
from twinpass.settings import STRICT, Count, NonNegative
from twinpass.train.journal import History

SETTLED = 5
"""Gradients that must have been seen before their median means something."""

ClipWindow = Annotated[int, Field(ge=SETTLED)]


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
    first are the lowest and first such means; the held-out metric must stay within ``metric`` of its best.
    Either limit is switched off by 0. Losses must be finite in any case.
    """

    window: Count = 20
    loss: NonNegative = 1.0
    metric: NonNegative = 0.15

    def check(self, history: History) -> Rollback | None:
        """A rollback if losses or metric say that the run has diverged: a pure function of the history."""
        return self.check_losses(history) or self.check_metric(history)

    def check_losses(self, history: History) -> Rollback | None:
        """A rollback to the end of the best window, if the last window is far above it."""
        losses = [step.estimate.loss for step in history.steps]
        if not self.loss or len(losses) <= self.window:
            return None
        means = np.convolve(losses, np.ones(self.window) / self.window, mode="valid")
        best = int(np.argmin(means))
        limit = means[best] + self.loss * max(means[best], means[0] / 4)
        if means[-1] <= limit:
            return None
        return Rollback(
            best + self.window, f"mean loss {means[-1]:.3g} of the last {self.window} steps is above {limit:.3g}"
        )

    def check_metric(self, history: History) -> Rollback | None:
        """A rollback to the best evaluation, if the last is far below it."""
        if not self.metric or len(history.evaluations) < 2:
            return None
        best = max(history.evaluations, key=lambda step: history.evaluations[step])
        last = max(history.evaluations)
        if history.evaluations[last] >= history.evaluations[best] - self.metric:
            return None
        return Rollback(
            best,
            f"held-out metric {history.evaluations[last]:.3g} is far below the best, {history.evaluations[best]:.3g} at step {best}",
        )

    def not_finite(self, history: History) -> Rollback:
        """A rollback for a loss that is not a number: to the end of the best window, or to the start."""
        losses = [step.estimate.loss for step in history.steps]
        to = 0
        if len(losses) >= self.window:
            means = np.convolve(losses, np.ones(self.window) / self.window, mode="valid")
            to = int(np.argmin(means)) + self.window
        return Rollback(to, "a loss was not a finite number")
