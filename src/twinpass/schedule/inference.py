"""What trials and checks tell of the errors of g: a posterior over rounding, truncation and reflection.

With n, t and b their scales at eps 1, everything that was measured and ought to be zero is Gaussian with covariance
``n^2 N + s^2 v v^T``, where s is t or b, and N and v follow from the eps alone (docs/maths/epsilon.md). The posterior is taken on a grid
of n, of the eps where truncation is as large as rounding, and of the one where reflection is, on logarithmic scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Observation, StepReport

Floats = NDArray[np.float64]

SATURATED = 0.3
"""A loss that moved by this share of itself has left the range where errors follow powers of eps."""

NOISE = np.geomspace(1e-5, 1e5, 61)
"""Candidates of n, in units of the loss's own resolution."""

DOUBT = 2.0
"""Standard deviation of log n before any trial: losses may be noisier than their last digit, or less."""

AMPLIFIED = 3.0
"""``2 KV0 - KV+`` has five times the variance of rounding, where that comes from keys and values; beside L+, which has it once, g has three times its own."""

BALANCE = np.geomspace(1e-8, 10.0, 91)
"""Candidates of the eps at which rounding and another error are alike."""

LEAST = 1e-4
"""Candidates count whose likelihood is at least this share of the likeliest's."""


@dataclass(frozen=True)
class Evidence:
    """``x ~ N(0, n^2 noise + s^2 v v^T)``: x [k], noise [k, k], v [k]."""

    x: Floats
    noise: Floats
    v: Floats

    def log_likelihood(self, n: Floats, ratio: Floats) -> Floats:
        """At every n and every ``s^2 / n^2``, which broadcast."""
        x, v = np.linalg.solve(np.linalg.cholesky(self.noise), np.stack([self.x, self.v], 1)).T
        along = v * (v @ x) / (v @ v)
        spread = 1 + ratio * (v @ v)
        quadratic = np.sum((x - along) ** 2) + np.sum(along**2) / spread
        return np.asarray(-0.5 * (2 * len(x) * np.log(n) + np.log(spread) + quadratic / n**2))


@dataclass(frozen=True)
class Trial:
    """Losses of one probe at several eps from small to large, [rungs] each, about the base lane's."""

    eps: Floats
    plus: Floats
    minus: Floats
    base: float

    @classmethod
    def of(cls, observed: Observation) -> "Trial | None":
        """The trial in a step's observation; None if there was none, or a loss was not finite."""
        if len(observed.ladder) != 3 or observed.base is None:
            return None
        eps, plus, minus = np.array(observed.ladder).T
        return cls(eps, plus, minus, observed.base)

    @property
    def size(self) -> float:
        """What movements of the loss are measured by."""
        return max(1.0, abs(self.base))

    @property
    def gradients(self) -> Floats:
        """Two-sided, by rung."""
        return np.asarray((self.plus - self.minus) / (2 * self.eps))

    @property
    def usable(self) -> int:
        """How many rungs lie below the first where losses saturate."""
        moved = np.maximum(abs(self.plus - self.base), abs(self.minus - self.base)) / self.size
        return int(np.cumprod(moved <= SATURATED).sum())

    def evidence(self, order: int) -> list[Evidence]:
        """Of truncation: differences between rungs that do not saturate, and where losses do.

        There the truncation error is taken to be as large as the slope that leads there.
        """
        count, found = self.usable, []
        if count < len(self.eps):
            rise = max(abs(self.plus[count] - self.base), abs(self.minus[count] - self.base))
            eps = self.eps[count] * SATURATED * self.size / rise
            found.append(Evidence(*map(np.atleast_1d, (SATURATED * self.size / eps, [[eps**-2.0]], eps**order))))
        eps, g = self.eps[:count], self.gradients[:count]
        if order == 1 and count:  # curvature, which one-sided differences take for slope
            odd = (self.plus + self.minus - 2 * self.base)[:count] / (2 * eps)
            found.append(Evidence(odd, (2 + np.eye(count)) / np.outer(eps, eps), eps))
        elif count > 1:
            take = np.eye(count)[1:] - np.eye(count)[:-1]
            found.append(Evidence(take @ g, take @ np.diag(eps**-2.0) @ take.T, take @ eps**2))
        return found


@dataclass(frozen=True)
class Errors:
    """A posterior over the mean squares of the errors of g at eps 1, with weights: [candidates] each."""

    rounding: Floats
    truncation: Floats
    reflection: Floats
    weights: Floats
    order: int

    def at(self, eps: Floats, *, reflected: bool = False) -> Floats:
        """Mean square of the error of exact or reflected g at each eps, as a geometric mean over the posterior."""
        rounding = self.rounding * (4 if self.order == 1 else 1)
        if reflected:
            rounding = AMPLIFIED * rounding

        def log(e: float) -> Floats:
            found = rounding / e**2 + self.truncation * e ** (2 * self.order)
            return np.asarray(np.log(found + self.reflection * e**2 if reflected else found))

        return np.exp([self.weights @ log(float(e)) for e in eps])


def infer(trials: Sequence[Trial], checks: Sequence[Evidence], order: int, resolution: float) -> Errors:
    """The posterior after some trials, and after some checks of reflection; without these, there is none.

    Of truncation and of reflection each piece of evidence says something beside n alone. So the grid of all three is looked at one n after the
    other, and never exists as a whole: it has 4 MB, and a process whose largest arrays come and go by a trial leaves holes in its heap.
    """
    size = float(np.mean([trial.size for trial in trials]))
    n = resolution * size * NOISE[:, None]
    truncation = BALANCE ** -(2.0 * order + 2)
    reflection = BALANCE**-4.0 if checks else np.zeros(1)
    tried = -0.5 * (np.log(NOISE)[:, None] / DOUBT) ** 2 + 0.0 * truncation
    checked = 0.0 * n + 0.0 * reflection
    for trial in trials:
        for evidence in trial.evidence(order):
            tried = tried + evidence.log_likelihood(n, truncation)
    for evidence in checks:
        checked = checked + evidence.log_likelihood(n, reflection)
    top = float((tried.max(1) + checked.max(1)).max())
    kept = []
    for square, by_truncation, by_reflection in zip(n[:, 0] ** 2, tried, checked, strict=True):
        weights = np.exp(by_truncation[:, None] + by_reflection - top)
        t, r = np.nonzero(weights > LEAST)
        kept.append(np.stack([np.full(len(t), square), square * truncation[t], square * reflection[r], weights[t, r]]))
    rounding, bent, mirrored, weights = np.concatenate(kept, 1)
    return Errors(rounding, bent, mirrored, weights / weights.sum(), order)


def checks_of(steps: Sequence[StepReport], highest: float) -> list[Evidence]:
    """What steps measured of reflection, at most at ``highest``.

    Both g share the plus loss, and so their difference has the rounding of one; where nothing was reflected they share all of it, and tell nothing.
    """
    return [
        Evidence(np.array([a - g]), np.array([[report.estimate.eps**-2.0]]), np.array([report.estimate.eps]))
        for report in steps
        if report.estimate.eps <= highest and report.observed.prefix.accepted
        for a, g in zip(report.observed.approximate, report.observed.exact, strict=True)
    ]


def gradient(trials: Sequence[Trial], errors: Errors) -> float:
    """Mean square of g, each trial's from the rung of least error, whose error is taken out of it."""
    found = []
    for trial in trials:
        squares = errors.at(trial.eps)
        best = int(np.argmin(squares))
        found.append(max(0.0, float(trial.gradients[best] ** 2 - squares[best])))
    return float(np.mean(found))
