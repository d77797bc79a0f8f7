"""A biased policy made unbiased by running the exact lanes now and then."""

from collections.abc import Sequence
from dataclasses import dataclass as record
from dataclasses import replace
from typing import ClassVar

from pydantic import InstanceOf
from pydantic.dataclasses import dataclass

from twinpass.core import Lane
from twinpass.reuse.base import Approximation, Circumstances, Policy, Sharing, Trains
from twinpass.reuse.plan import LanePlan, LanePlanner, Situation
from twinpass.settings import STRICT, Probability


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Debiased(Approximation):
    """``g_inner + (B / p) (g - g_inner)`` with B ~ Bernoulli(p): unbiased, at the price of variance (docs/maths/debiased.md).

    The coin B is drawn from the run's seed, so that a resumed run draws the same.

    Args:
        inner: the biased policy; ``budget`` and ``page_size`` are given here, and B stands for its ``check``.
        probability: p, in (0, 1].
    """

    bias_order: ClassVar[int | None] = None

    inner: InstanceOf[Policy]
    probability: Probability = 0.125

    def __post_init__(self) -> None:
        if not self.probability:
            raise ValueError("probability: must be above 0; the exact lanes have to run sometimes")
        if isinstance(self.inner, Debiased) or type(self.inner).bias_order is None:
            raise ValueError("inner: there is no bias to correct; choose 'frozen', 'reflected' or 'transported'")
        for key, instead in (("check", "probability"), ("budget", "budget"), ("page_size", "page_size")):
            if getattr(self.inner, key) != getattr(type(self.inner), key):
                raise ValueError(f"inner: {key} has no effect there; set {instead} of the debiased policy itself")

    def own_objections(self, to: Circumstances) -> list[str]:
        return self.inner.own_objections(to)

    def sharing(self, trains: Trains) -> Sharing | None:
        return self.inner.sharing(trains)

    def planner(self) -> "DebiasedPlanner":
        return DebiasedPlanner(self.inner.planner(), self.probability)


@record(frozen=True, slots=True)
class DebiasedPlanner(LanePlanner):
    """As ``inner`` plans; with ``probability``, the lanes that it approximates run exactly beside them, and correct it."""

    inner: LanePlanner
    probability: float

    def plan(self, lanes: Sequence[Lane], situation: Situation) -> LanePlan:
        plan = self.inner.plan(lanes, replace(situation, coin=1.0))  # must not depend on B
        if plan.twins and plan.weight == 1.0:
            return plan  # the inner policy measures, and is exact this time
        plan = replace(plan, twins=(), weight=1.0)
        if plan.spans is None or situation.coin >= self.probability:
            return plan
        carried = plan.spans.base == "carried"
        twins = [lane.exact for lane in plan.lanes if lane.prefix != "own" and (lane.sign or carried)]
        return replace(plan, twins=tuple(twins), weight=1.0 / self.probability)

    def accepted(self, eps: float, situation: Situation) -> float | None:
        return self.inner.accepted(eps, situation)
