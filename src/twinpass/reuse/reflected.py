"""The minus lane's prefix by reflection: KV- = 2 KV0 - KV+, accepted layer by layer where its measured error allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass as record
from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Lane, Prefix, StepReport
from twinpass.reuse.base import Approximation, Circumstances
from twinpass.reuse.plan import BaseKeys, LanePlan, LanePlanner, Situation, Spans
from twinpass.settings import STRICT, Positive, Probability
from twinpass.steps import folded


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Reflected(Approximation):
    """Approximate: the error of g is O(eps) (docs/maths/reflected.md).

    Reflection costs (1 + q) passes over the prefix instead of 2 q. Steps that measure score the exact minus lanes as well,
    and use them. Below the first layer whose error, scaled from the eps it was measured at, exceeds the tolerance,
    reflections are accepted; the state that enters that layer is reflected and runs exactly above it.

    Args:
        tolerance: largest error of reflected keys and values, relative to how far the perturbation moved them.
        check: probability that a step measures; the first always does, and so do those that try other eps.
    """

    bias_order: ClassVar[int | None] = 1

    tolerance: Positive = 0.2
    check: Probability = 0.05

    def own_objections(self, to: Circumstances) -> list[str]:
        if to.differentiates:
            return []
        if not to.two_sided:
            return ["'reflected' has no minus lanes to reflect with a one-sided estimator; use 'exact'"]
        if to.probes < 2:
            return [
                "'reflected' runs one base lane for all probes, and saves nothing with one; "
                "set [estimator] probes to 2 or more, or use 'transported'"
            ]
        return []

    def planner(self) -> "ReflectedPlanner":
        return ReflectedPlanner(self.tolerance, self.check)


@record(frozen=True, slots=True)
class ReflectedPlanner(LanePlanner):
    """Minus lanes are reflected about a base lane that is computed for the step."""

    tolerance: float
    check: float

    def plan(self, lanes: Sequence[Lane], situation: Situation) -> LanePlan:
        return reflect(lanes, situation, self.tolerance, self.check, "compute")

    def accepted(self, eps: float, situation: Situation) -> float | None:
        return accepted_layers(eps, situation, self.tolerance) / situation.layers


REMEASURE = 4.0
"""Errors are not scaled to an eps further away than this factor: they are measured again."""


NONE: tuple[StepReport, ...] = ()
"""Before any step has measured."""

APART = 2.0
"""Two measurements tell rounding from reflection if their eps differ by this factor at least."""


def accepted_layers(eps: float, situation: Situation, tolerance: float) -> int:
    """How many layers, from the lowest, stay within ``tolerance`` at ``eps``."""
    within = [error <= tolerance for error in expected_errors(eps, situation)]
    return within.index(False) if False in within else situation.layers


def expected_errors(eps: float, situation: Situation) -> list[float]:
    """Errors at ``eps`` by layer: ``e^2 = a^2 / eps^2 + b^2 eps^2``, of rounding and of reflection.

    b follows from the last measurement, with a = 0 until there is another at an eps far enough away; then both follow from the two.
    """
    measured = folded(situation.steps, NONE, _measured)
    if not measured:
        return []
    last, here = measured[-1], measured[-1].estimate.eps
    other = next((step for step in reversed(measured) if not 1 / APART < step.estimate.eps / here < APART), None)
    errors = last.observed.prefix.errors
    pairs = zip(errors, other.observed.prefix.errors, strict=True) if other else ((error, 0.0) for error in errors)
    away = other.estimate.eps / here if other else 0.0
    return [_expected(eps / here, error, there, away) for error, there in pairs]


def _expected(scale: float, error: float, there: float, away: float) -> float:
    """The error at ``scale`` times the eps where it was ``error``, as it was ``there`` at ``away`` times that eps."""
    rounding = 0.0
    if away:
        rounding = (there**2 - error**2 * away**2) / (away**-2.0 - away**2)
    rounding = min(max(0.0, rounding), error**2)
    return math.sqrt(rounding / scale**2 + (error**2 - rounding) * scale**2)


def reflect(lanes: Sequence[Lane], situation: Situation, tolerance: float, check: float, base: BaseKeys) -> LanePlan:
    """Reflect every minus lane as far as the last measurement allows; measure, if it is time to."""
    pairs, eps = sum(lane.sign < 0 for lane in lanes), max(lane.eps for lane in lanes)
    layers = accepted_layers(eps, situation, tolerance)
    measures = situation.trial or situation.coin < check or (pairs > 0 and not _measured_near(eps, situation))
    if (not measures and not layers) or (not pairs and base == "compute"):
        return LanePlan(tuple(lanes))
    spans = Spans("prompt" if pairs > 1 or base == "compute" else "returning", layers, base)
    chosen = tuple(replace(lane, prefix=_prefix(lane)) for lane in lanes)
    biased = [lane.exact for lane in chosen if lane.sign < 0 or (not lane.sign and base == "carried")]
    return LanePlan(chosen, spans, tuple(biased) if measures else ())


def _prefix(lane: Lane) -> Prefix:
    return "own" if lane.sign > 0 else "reflected" if lane.sign else "base"


def _measured_near(eps: float, situation: Situation) -> bool:
    seen = folded(situation.steps, NONE, _measured)
    return bool(seen) and 1 / REMEASURE <= eps / seen[-1].estimate.eps <= REMEASURE


def _measured(before: tuple[StepReport, ...], step: StepReport) -> tuple[StepReport, ...]:
    """Steps that measured errors, as far as one of them may still be the latest far enough from some eps.

    An older one between two later ones never is; nor is any before two that are so far from each other that one of them is far enough.
    """
    if not step.observed.prefix.errors:
        return before
    kept = [step]
    least = most = step.estimate.eps
    for known in reversed(before):
        eps = known.estimate.eps
        if most >= APART**2 * least:
            break
        if not least <= eps <= most:
            kept.append(known)
            least, most = min(least, eps), max(most, eps)
    return tuple(reversed(kept))
