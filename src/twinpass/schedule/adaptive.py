"""Eps that follows the noise floor, the truncation error and the hit rate, in the manner of step-size controllers.

The error of a projected gradient has three parts, here at factor f times the present eps::

    (n / f)^2      rounding: the losses carry noise, which eps divides
    (b f)^2        reflection: measured wherever exact lanes ran beside reflected ones
    (t f^p)^2      truncation, of the estimator's order p

n and t follow from the same probe at three eps (a trial), as embedded error estimates do in solvers of differential
equations (Soederlind 2002, "Automatic control and adaptive time-stepping"). The controller goes to the minimum of the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass as record
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.core import StepReport
from twinpass.schedule.epsilon import Epsilon, Known
from twinpass.settings import STRICT, Count, Positive, Probability

SPREAD = 4.0
"""Trials are made at eps / SPREAD, eps and eps * SPREAD."""

FACTORS = np.geomspace(1e-3, 10.0, 801)
"""How far eps may move at once: up in small steps, as loss may saturate there; down at will."""

SATURATED = 0.15
"""A loss that moved by more than this share of itself has left the range in which differences mean anything."""

ROUNDING = 8.0
"""There, what looks like noise is taken for rounding up to this many times the resolution of the numbers only."""

WINDOW, NEAR = 6, 10.0
"""So many of the last trials and measurements count, if their eps was within this factor of the present one."""


@record(frozen=True)
class Errors:
    """Mean squares of rounding and truncation errors of g, at eps 1: the former falls with its square, the latter rises.

    Where losses are ``saturated`` both say only that eps is too large.
    """

    rounding: float
    truncation: float
    saturated: bool = False


@dataclass(frozen=True, config=STRICT)
class AdaptiveEpsilon(Epsilon):
    """Eps at the least error of the projected gradient that keeps the accepted hit rate.

    Args:
        start: the first eps.
        lowest, highest: bounds of eps.
        target: accepted hit rate to keep, where reflections are accepted or rejected.
        every: steps between trials once eps has settled; before that they come more often.
    """

    start: Positive = 1e-3
    lowest: Positive = 1e-6
    highest: Positive = 1e-1
    target: Annotated[Probability, Field(lt=1)] = 0.8
    every: Count = 32

    def __post_init__(self) -> None:
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(
                f"start: {self.start:g} is not between lowest ({self.lowest:g}) and highest ({self.highest:g})"
            )

    def at(self, step: int, known: Known) -> float:
        if not known.steps:
            return self.start
        eps = known.steps[-1].estimate.eps
        if known.steps[-1].observed.ladder:
            eps *= self._factor(eps, known)
        return self._within_bounds(self._keeping_hits(eps, known))

    def trials(self, step: int, eps: float, known: Known) -> tuple[float, ...]:
        return (eps / SPREAD, eps, eps * SPREAD) if self._due(known.steps) else ()

    def _due(self, steps: Sequence[StepReport]) -> bool:
        """Trials come every step while eps moves, then at distances that double up to ``every``."""
        since, gap, last = 0, 0, None
        for report in steps:
            since += 1
            if report.observed.ladder:
                moved = last is None or abs(np.log(report.estimate.eps / last)) > np.log(1.5)
                gap, since, last = (1 if moved else min(self.every, 2 * gap)), 0, report.estimate.eps
        return last is None or since + 1 >= gap

    def _factor(self, eps: float, known: Known) -> float:
        """Where the error is least, relative to the present eps."""
        order = 2 * known.bias_order
        near = [(report.estimate.eps, errors) for report in _near(known.steps, eps) if (errors := trial(report, known))]
        if not near:
            return float(FACTORS[0])  # nothing finite came back: far too large
        near = near[-1:] if near[-1][1].saturated else [pair for pair in near if not pair[1].saturated]
        scales = np.array([scale for scale, _ in near])
        rounding = float(np.mean([errors.rounding for _, errors in near])) / eps**2
        # truncation found at a small eps is mostly noise, magnified by eps^-2p: the larger ones know better
        weights = (scales / scales.max()) ** (2 * order + 4)
        truncation = float(np.average([errors.truncation for _, errors in near], weights=weights)) * eps**order
        if not rounding and not truncation:
            return float(FACTORS[-1])  # the losses do not differ at all
        total = rounding / FACTORS**2 + truncation * FACTORS**order
        total = total + _bias(known, eps, rounding * eps**2) * FACTORS**2
        return float(FACTORS[np.argmin(total)])

    def _keeping_hits(self, eps: float, known: Known) -> float:
        """The largest eps, at most the given one, at which enough reflections are accepted."""
        for candidate in eps * np.geomspace(1.0, 1e-4, 161):
            share = known.accepted(float(candidate))
            if share is None or share >= self.target:
                return float(candidate)
        return eps * 1e-4

    def _within_bounds(self, eps: float) -> float:
        return float(np.clip(eps, self.lowest, self.highest))


def trial(report: StepReport, known: Known) -> Errors | None:
    """Rounding and truncation errors that a step's trial shows; None if a loss was not finite.

    With D1 = g(eps) - g(eps / r) and D2 = g(r eps) - g(eps): E D1^2 = (r^2 + 1) n^2 + (1 - r^-2)^2 t^2 and
    E D2^2 = (1 + r^-2) n^2 + (r^2 - 1)^2 t^2, solved for n and t of two-sided differences. A one-sided
    one's truncation error is half the curvature (L+ + L- - 2 L0) / eps^2 times eps; it is taken where it stands out most, at r eps.
    """
    observed = report.observed
    if len(observed.ladder) != 3 or observed.base is None:
        return None
    (_, eps, _), plus, minus = (np.array(column) for column in zip(*observed.ladder, strict=True))
    scales = np.array([point[0] for point in observed.ladder])
    low, here, high = (plus - minus) / (2 * scales)
    r = SPREAD**2
    first, second = (here - low) ** 2, (high - here) ** 2
    (n, t), *_ = np.linalg.lstsq(
        np.array([[r + 1, (1 - 1 / r) ** 2], [1 + 1 / r, (r - 1) ** 2]]), np.array([first, second])
    )
    size = max(1.0, abs(observed.base))
    saturated = bool(max(abs(plus[1] - observed.base), abs(minus[1] - observed.base)) > SATURATED * size)
    if saturated:
        n = min(n, (ROUNDING * known.resolution * size) ** 2 / (2 * eps**2))
        t = max(t, first, second / (r - 1) ** 2, 2048 * n)  # at least fourfold too large
    n, t = max(n, 0.0), max(t, 0.0)
    if known.bias_order == 1:
        even = (plus[2] + minus[2] - 2 * observed.base) / (2 * SPREAD * eps)
        n, t = 4 * n, max(0.0, even**2 - 3 * n / r) / r
    return Errors(float(n * eps**2), float(t / eps ** (2 * known.bias_order)), saturated)


def _near(steps: Sequence[StepReport], eps: float) -> list[StepReport]:
    """The last trials at about the present eps."""
    tried = [report for report in steps if report.observed.ladder]
    return [r for r in tried[-WINDOW:] if 1 / NEAR <= r.estimate.eps / eps <= NEAR]


def _bias(known: Known, eps: float, rounding: float) -> float:
    """Mean square of what reflection adds to the error of g, brought to the present eps; rounding is taken out of it."""
    if known.accepted(eps) is None:
        return 0.0
    squares = [
        ((a - g) ** 2 - rounding / report.estimate.eps**2) * (eps / report.estimate.eps) ** 2
        for report in [report for report in known.steps if report.observed.exact][-WINDOW:]
        for a, g in zip(report.observed.approximate, report.observed.exact, strict=True)
        if 1 / NEAR <= report.estimate.eps / eps <= NEAR
    ]
    return max(0.0, float(np.mean(squares))) if squares else 0.0
