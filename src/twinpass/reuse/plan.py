"""Plans: the lanes that a step scores, and the spans over which they take keys and values from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twinpass.core import Estimate, Lane, StepReport

BaseKeys = Literal["compute", "keep", "carried"]
"""The base lane's keys and values: computed for this step, computed and kept for later ones, or those carried from earlier ones."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Where lanes with a ``prefix`` other than their own do not compute it.

    ::

        layer    prefix tokens           the rest
        L - 1    COMPUTE                 COMPUTE
        layers   COMPUTE, from the state that was reused or reflected
        ...      REUSE or REFLECT        COMPUTE
        0

    Lanes with the ``base`` prefix reuse it in all layers.

    ``tokens``: the prefix is the ``prompt`` up to its suffix, or what all prompts of the batch share (``returning``, as it
    comes back with every batch).
    """

    tokens: Literal["prompt", "returning"]
    layers: int
    base: BaseKeys = "compute"


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What to score for an estimate, and how to make it from the losses.

    Args:
        lanes: the estimator's lanes in its order, some of them under another prefix.
        spans: where that holds.
        twins: exact versions of some of the lanes, scored beside them.
        weight: the estimate is ``approximate + weight * (exact - approximate)`` where there are twins.
    """

    lanes: tuple[Lane, ...]
    spans: Spans | None = None
    twins: tuple[Lane, ...] = ()
    weight: float = 1.0

    @property
    def exact(self) -> list[Lane]:
        """The lanes with their twins in place of those that have one."""
        return [lane.exact if lane.exact in self.twins else lane for lane in self.lanes]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may look at: the model's ``layers``, the ``steps`` in force, and a ``coin`` (uniform in [0, 1)).

    ``trial``: this step tries other eps too, so that it is the time to measure what depends on eps.
    """

    layers: int
    steps: Sequence[StepReport] = ()
    coin: float = 0.0
    trial: bool = False


class LanePlanner:
    """What a trainer is given of a policy, and asks step by step: which lanes take their prefix from elsewhere. Here none does."""

    def plan(self, lanes: Sequence[Lane], situation: Situation) -> LanePlan:
        """How to score an estimator's lanes: a pure function, so that a resumed run plans as the first did."""
        return LanePlan(tuple(lanes))

    def accepted(self, eps: float, situation: Situation) -> float | None:
        """The share of reflections that would be accepted at ``eps``, as last measured; None where there are none."""
        return None


def combine(plan: LanePlan, approximate: Estimate, exact: Estimate) -> tuple[float, ...]:
    """``g_a + weight * (g - g_a)``, probe by probe; to the bit one of them at weight 0 or 1."""
    if plan.weight in (0.0, 1.0):
        return exact.gradients if plan.weight else approximate.gradients
    pairs = zip(approximate.gradients, exact.gradients, strict=True)
    return tuple(a + plan.weight * (g - a) for a, g in pairs)
