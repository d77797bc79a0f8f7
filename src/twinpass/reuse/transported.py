"""Reflection about base-lane keys and values that are not computed each step, but moved with the weights."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Lane
from twinpass.reuse.base import Policy, Sharing, Trains, refuse_exact_ground
from twinpass.reuse.plan import LanePlan, Situation
from twinpass.reuse.reflected import accepted_layers, reflect
from twinpass.settings import STRICT, Count, Positive, Probability


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Transported(Policy):
    """Approximate: reflection, whose O(eps) stays, and an error of O(delta^2 + delta eps) a step until refreshed (docs/maths/transported.md).

    The update just made is ``delta z`` along the z that the plus lane was perturbed by, so that the prefix which all
    prompts share moves by KV0 += (delta / eps) (KV+ - KV0). It then costs one pass a step, not two, also with one probe.

    Args:
        refresh: steps after which the base lane's keys and values are computed again.
        tolerance, check: as in :class:`Reflected`; a step that measures refreshes too. If what was carried is found
            to be off by more than the tolerance, the next refresh comes after half as many steps.
    """

    bias_order: ClassVar[int | None] = 1
    approximate: ClassVar[bool] = True

    refresh: Count = 32
    tolerance: Positive = 0.2
    check: Probability = 0.05

    def sharing(self, trains: Trains) -> Sharing | None:
        refuse_exact_ground(trains, "transported")
        return None

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
        limit = self.refresh
        for before, step in zip(situation.steps, situation.steps[1:], strict=False):
            error, age = step.observed.prefix.carried, before.observed.prefix.age
            if error is None or age is None:
                continue
            if error > self.tolerance:
                limit = max(1, (age + 1) // 2)
            elif error < self.tolerance / 4:
                limit = min(self.refresh, 2 * limit)
        return limit
