"""One step of MeZO: Algorithm 1 of Malladi et al. 2023 (arXiv 2305.17333), with its passes in tandem."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from twinpass.core import BASE, Estimate, Lane, Observation, Probe, StepReport
from twinpass.engine.base import Engine
from twinpass.estimate.base import Estimator
from twinpass.objective.goal import START, At, Goal
from twinpass.reuse.plan import LanePlanner, Situation, combine
from twinpass.task.example import Example

Lengths = Callable[[Estimate], tuple[float, ...]]


def _as_they_are(estimate: Estimate) -> tuple[float, ...]:
    return estimate.gradients


@dataclass(frozen=True, slots=True)
class Method:
    """How steps are measured: what is estimated, of which goal, along which lanes.

    ``planner`` says which lanes may read others' prefixes, and which are measured exactly beside them, to compare or to correct;
    ``lengths`` says what takes the projected gradients' place in the update.
    """

    estimator: Estimator
    goal: Goal
    planner: LanePlanner
    lengths: Lengths = _as_they_are


@dataclass(frozen=True, slots=True)
class Draw:
    """What is a step's own: its number ``step``, from 0, the minibatch B, and q ``probes``, each a seed s that z is regenerated from.

    ``trials`` are other eps to try the first probe at.
    """

    step: int
    examples: Sequence[Example]
    probes: Sequence[Probe]
    eps: float
    lr: float
    decay: float = 0.0
    at: At = START
    trials: Sequence[float] = ()


def measure(engine: Engine, method: Method, draw: Draw, situation: Situation) -> StepReport:
    """Everything of a step but its update, which is made once the report is in the journal."""
    estimator, goal = method.estimator, method.goal
    examples, probes, eps = draw.examples, draw.probes, draw.eps
    plan = method.planner.plan(estimator.lanes(probes, eps), situation)
    tries = [(other, Lane(probes[0], 1, other), Lane(probes[0], -1, other)) for other in draw.trials]
    lanes = [*plan.lanes, *plan.twins, *(lane for _, *signs in tries for lane in signs), *([BASE] if tries else [])]
    distinct = list(dict.fromkeys(lanes))
    found = goal.measure(engine, examples, distinct, plan.spans, draw.at)
    losses = dict(zip(distinct, found.losses, strict=True))
    approximate = estimator.estimate(probes, eps, [losses[lane] for lane in plan.lanes])
    exact = estimator.estimate(probes, eps, [losses[lane] for lane in plan.exact]) if plan.twins else approximate
    ladder = [(other, losses[plus], losses[minus]) for other, plus, minus in tries]
    compared = bool(plan.twins) and _finite(approximate.gradients) and _finite(exact.gradients)
    observed = Observation(
        prefix=found.prefix,
        approximate=approximate.gradients if compared else (),
        exact=exact.gradients if compared else (),
        ladder=tuple(point for point in ladder if _finite(point)),
        base=losses[BASE] if tries and math.isfinite(losses[BASE]) else None,
    )
    estimate = replace(exact, gradients=combine(plan, approximate, exact)) if plan.twins else approximate
    if not plan.twins and found.scores:
        by_lane = dict(zip(distinct, found.scores, strict=True))
        estimate = estimator.refine(estimate, goal, examples, [by_lane[lane] for lane in plan.lanes])
    moved = estimate.preconditioned or method.lengths(estimate)
    return StepReport(
        draw.step, estimate, moved, draw.lr, found.work, found.cache, observed, metrics=found.metrics, decay=draw.decay
    )


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def apply(engine: Engine, report: StepReport) -> None:
    """``theta = (1 - lr decay) theta - lr / q * sum_k g_k z_k``."""
    engine.update(report.terms)
