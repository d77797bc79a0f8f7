"""Reflection about base-lane keys and values that are not computed each step, but moved with the weights."""

from collections.abc import Sequence
from dataclasses import dataclass as record
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Lane, StepReport
from twinpass.reuse.base import Approximation
from twinpass.reuse.plan import LanePlan, LanePlanner, Situation
from twinpass.reuse.reflected import accepted_layers, reflect
from twinpass.settings import STRICT, Count, Positive, Probability
from twinpass.steps import folded


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Transported(Approximation):
    """Approximate: reflection, whose O(eps) stays, and an error of O(delta^2 + delta eps) a step until refreshed (docs/maths/transported.md).

    The update just made is ``delta z`` along the z that the plus lane was perturbed by, so that the prefix which all
    prompts share moves by KV0 += (delta / eps) (KV+ - KV0). It then costs one pass a step, not two, also with one probe.

    Args:
        refresh: steps after which the base lane's keys and values are computed again.
        tolerance, check: as in :class:`Reflected`; a step that measures refreshes too. If what was carried is found
            to be off by more than the tolerance, the next refresh comes after half as many steps.
    """

    bias_order: ClassVar[int | None] = 1

    refresh: Count = 32
    tolerance: Positive = 0.2
    check: Probability = 0.05

    def planner(self) -> "TransportedPlanner":
        return TransportedPlanner(self.refresh, self.tolerance, self.check)


@record(frozen=True, slots=True)
class Limit:
    """How many steps carry on until a refresh, and the age of what the last one carried."""

    steps: int
    age: int | None = None


@record(frozen=True, slots=True)
class TransportedPlanner(LanePlanner):
    """Lanes are reflected about a base lane that is carried from step to step, and computed again when that is due or measured."""

    refresh: int
    tolerance: float
    check: float

    def plan(self, lanes: Sequence[Lane], situation: Situation) -> LanePlan:
        plan = reflect(lanes, situation, self.tolerance, self.check, "carried")
        if self._due(situation) or (plan.twins and any(lane.sign < 0 for lane in lanes)):
            return reflect(lanes, situation, self.tolerance, self.check, "keep")
        return plan

    def accepted(self, eps: float, situation: Situation) -> float | None:
        return accepted_layers(eps, situation, self.tolerance) / situation.layers

    def _due(self, situation: Situation) -> bool:
        """Whether what is carried is as old as it may get."""
        if not situation.steps or (age := situation.steps[-1].observed.prefix.age) is None:
            return True
        return age + 1 >= self.limit(situation)

    def limit(self, situation: Situation) -> int:
        """Steps until the next refresh: halved where the last one found too large an error, doubled where a small one."""
        return folded(situation.steps, Limit(self.refresh), self._after).steps

    def _after(self, limit: Limit, step: StepReport) -> Limit:
        prefix, steps = step.observed.prefix, limit.steps
        if prefix.carried is not None and limit.age is not None:
            if prefix.carried > self.tolerance:
                steps = max(1, (limit.age + 1) // 2)
            elif prefix.carried < self.tolerance / 4:
                steps = min(self.refresh, 2 * steps)
        return Limit(steps, prefix.age)
