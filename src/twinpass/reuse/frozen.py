"""The naive idea: both signs read the base lane's keys and values for their prefix. Its bias does not vanish with eps."""

from collections.abc import Sequence
from dataclasses import dataclass as record
from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Lane, StepReport
from twinpass.reuse.base import Approximation
from twinpass.reuse.plan import LanePlan, LanePlanner, Situation, Spans
from twinpass.settings import STRICT, Probability
from twinpass.steps import folded


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Frozen(Approximation):
    """Approximate: drops the gradient through the prefix, whatever eps (docs/maths/frozen.md).

    It exists to be measured, and as what :class:`Debiased` corrects.

    Args:
        check: probability that a step scores the exact lanes as well, only to say how far off g is; the first does.
    """

    bias_order: ClassVar[int | None] = 0
    caution: ClassVar[str] = (
        "reuse.policy = 'frozen' drops the gradient through the prefix, at any eps: measured on SmolLM2-135M with demonstrations "
        "in the prompt, g was off by 0.67 of its size from eps 1e-5 to 1e-3 (benchmarks/results/profile-8shot.json). "
        "Use it inside 'debiased', or choose 'exact'"
    )

    check: Probability = 0.05

    def planner(self) -> "FrozenPlanner":
        return FrozenPlanner(self.check)


@record(frozen=True, slots=True)
class FrozenPlanner(LanePlanner):
    """Every lane takes the base lane's prefix; with probability ``check``, all run exactly beside that, and do not count."""

    check: float

    def plan(self, lanes: Sequence[Lane], situation: Situation) -> LanePlan:
        seen = folded(situation.steps, False, _measured)
        twins = tuple(lanes) if not seen or situation.coin < self.check else ()
        chosen = tuple(replace(lane, prefix="base") for lane in lanes)
        return LanePlan(chosen, Spans("prompt", situation.layers), twins, weight=0.0)


def _measured(before: bool, step: StepReport) -> bool:
    return before or bool(step.observed.exact)
