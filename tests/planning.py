"""Situations that policies plan for, without an engine."""

from collections.abc import Sequence

from twinpass.core import Estimate, Lane, Observation, PrefixReport, Probe, StepReport
from twinpass.estimate.spsa import Spsa
from twinpass.reuse.plan import LanePlan, Situation

EPS = 1e-3
ONE, TWO = ([Probe(seed) for seed in seeds] for seeds in ((7,), (7, 8)))


def report(
    errors: Sequence[float] = (),
    *,
    eps: float = EPS,
    age: int | None = None,
    carried: float | None = None,
    exact: Sequence[float] = (),
) -> StepReport:
    """A step that measured this."""
    prefix = PrefixReport(errors=tuple(errors), age=age, carried=carried)
    estimate = Estimate((Probe(1),), eps, ((0.0, 0.0),), (0.0,))
    return StepReport(0, estimate, (0.0,), 0.0, observed=Observation(prefix, tuple(exact), tuple(exact)))


def situation(*steps: StepReport, coin: float = 0.99, layers: int = 3) -> Situation:
    return Situation(layers, steps, coin)


def pairs(probes: Sequence[Probe] = TWO, eps: float = EPS) -> list[Lane]:
    return Spsa(len(probes)).lanes(probes, eps)


def prefixes(plan: LanePlan) -> list[str]:
    return [lane.prefix for lane in plan.lanes]


SEEN = report((0.1, 0.2, 0.3), exact=(1.0,))
