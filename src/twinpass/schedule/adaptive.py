"""Eps that follows the noise floor, the truncation error and the hit rate, in the manner of step-size controllers.

The error of a projected gradient at eps has three parts::

    (n / eps)^2      rounding: the losses carry noise, which eps divides
    (b eps)^2        reflection: measured wherever exact lanes ran beside reflected ones
    (t eps^p)^2      truncation, of the estimator's order p

n and t are inferred from one probe's losses at three eps (a trial), as embedded error estimates are in solvers of
differential equations (Soederlind 2002, "Automatic control and adaptive time-stepping"). Derivation: docs/maths/epsilon.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass as record
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.core import StepReport
from twinpass.schedule.epsilon import Epsilon, Known
from twinpass.schedule.inference import Evidence, Trial, checks_of, gradient, infer
from twinpass.settings import STRICT, Count, Probability, Scale
from twinpass.steps import folded

SPREAD = 4.0
"""Trials are made at eps / SPREAD, eps and eps * SPREAD."""

IN_A_ROW = 3
"""So many trials are made at a new eps, one a step."""

FACTORS = np.geomspace(1e-3, 10.0, 161)
"""How far eps may move at once: up in small steps, as loss may saturate there; down at will."""

OVERFLOW = 1e-3
"""How far it goes down from where a loss was not finite."""

WINDOW = 12
"""So many of the last trials count."""

CHECKS = 12
"""So many of the last measurements of reflection count."""

SLACK, BEARABLE = 1.5, 0.1
"""For the sake of hits the error of g may be this many times the least, or this share of g."""


@dataclass(frozen=True, config=STRICT)
class AdaptiveEpsilon(Epsilon):
    """Eps at the least error of the projected gradient; smaller, where that keeps the accepted hit rate and costs little.

    Args:
        start: the first eps.
        lowest, highest: bounds of eps.
        target: accepted hit rate to keep, where reflections are accepted or rejected, while the error of g stays within 1.5
            times the least or a tenth of g. Where no such eps reaches the target, hits are given up, not the gradient.
        every: steps between trials once eps has settled; before that they come more often.
    """

    start: Scale = 1e-3
    lowest: Scale = 1e-6
    highest: Scale = 1e-1
    target: Annotated[Probability, Field(lt=1)] = 0.8
    every: Count = 32

    def __post_init__(self) -> None:
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(
                f"start: {self.start:g} is not between lowest ({self.lowest:g}) and highest ({self.highest:g})"
            )

    @property
    def measures(self) -> bool:
        return True

    def at(self, step: int, known: Known) -> float:
        if not known.steps:
            return self.start
        last = known.steps[-1]
        if not last.observed.ladder and not last.observed.prefix.errors:
            return last.estimate.eps
        return float(np.clip(self._next(last.estimate.eps, known), self.lowest, self.highest))

    def trials(self, step: int, eps: float, known: Known) -> tuple[float, ...]:
        return (eps / SPREAD, eps, eps * SPREAD) if self._due(eps, seen(known)) else ()

    def _due(self, eps: float, tried: "Seen") -> bool:
        """Trials come where eps has moved since the last one; then some in a row, and at distances that double up to ``every``."""
        if tried.eps is None or _far(eps, tried.eps):
            return True
        gap: int = min(self.every, 2 ** max(0, tried.alike - IN_A_ROW))
        return tried.since >= gap

    def _next(self, eps: float, known: Known) -> float:
        last = known.steps[-1].observed
        if last.ladder and Trial.of(last) is None:
            return eps * OVERFLOW
        tried = seen(known).trials
        if not any(trial.gradients.any() for trial in tried):
            return eps * float(FACTORS[-1])
        checks = self._checks(known, tried)
        errors = infer(tried, checks, known.bias_order, known.resolution)
        scales = np.clip(eps * FACTORS, self.lowest, self.highest)
        squares = errors.at(scales, reflected=bool(checks))
        best = int(np.argmin(squares))
        bearable = max(SLACK**2 * squares[best], BEARABLE**2 * gradient(tried, errors))
        for i in range(best, -1, -1):
            share = known.accepted(float(scales[i]))
            if squares[i] > bearable:
                break
            if share is None or share >= self.target:
                return float(scales[i])
        return float(scales[best])

    def _checks(self, known: Known, tried: Sequence[Trial]) -> list[Evidence]:
        """What was seen of reflection, where there is any and losses do not saturate."""
        if known.accepted(self.start) is None:
            return []
        return checks_of(seen(known).checks, max(trial.eps[max(0, trial.usable - 1)] for trial in tried))


@record(frozen=True, slots=True)
class Seen:
    """What the steps in force have measured, as far as eps goes by it.

    Args:
        eps: that of the last step that made trials; None: none did.
        since: steps since then, that one included.
        alike: so many that made trials in a row did so at nearly the same eps.
        trials: the last ones.
        checks: the last steps that measured reflection.
    """

    eps: float | None = None
    since: int = 0
    alike: int = 0
    trials: tuple[Trial, ...] = ()
    checks: tuple[StepReport, ...] = ()

    def then(self, report: StepReport) -> "Seen":
        """With one step more."""
        observed, eps = report.observed, report.estimate.eps
        trial = Trial.of(observed)
        found = replace(
            self,
            since=self.since + 1,
            trials=(*self.trials, trial)[-WINDOW:] if trial else self.trials,
            checks=(*self.checks, report)[-CHECKS:] if observed.exact else self.checks,
        )
        if not observed.ladder:
            return found
        alike = 1 if self.eps is None or _far(self.eps, eps) else self.alike + 1
        return replace(found, eps=eps, since=1, alike=alike)


def seen(known: Known) -> Seen:
    """The same of all of them, in a time that does not grow with them."""
    return folded(known.steps, Seen(), Seen.then)


def _far(a: float, b: float) -> bool:
    return not 0.5 <= a / b <= 2.0
