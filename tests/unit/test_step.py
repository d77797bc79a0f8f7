"""A step measures the lanes that it asks for, each once, and reports what they came to."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from planning import TWO, situation

from twinpass.core import BASE, Lane, Work
from twinpass.estimate.spsa import Spsa
from twinpass.objective.goal import Measured
from twinpass.reuse.plan import LanePlanner
from twinpass.reuse.reflected import Reflected
from twinpass.train.step import Draw, Method, measure


class Slope:
    """A goal whose loss is 5 + 3 x of a lane x away from the weights."""

    def __init__(self) -> None:
        self.asked: list[Lane] = []

    def measure(self, engine: Any, examples: Any, lanes: Sequence[Lane], spans: Any, at: Any) -> Measured:
        self.asked += lanes
        return Measured(tuple(5.0 + 3.0 * (0.0 if lane == BASE else lane.scale) for lane in lanes), Work())


def test_other_eps_are_tried_on_both_sides_of_the_first_probe() -> None:
    goal = Slope()
    method = Method(Spsa(2), cast(Any, goal), LanePlanner())
    report = measure(cast(Any, None), method, Draw(4, (), TWO, 0.5, 0.1, trials=(0.25, 0.5)), situation())
    assert (report.step, report.lr) == (4, 0.1)
    assert report.estimate.gradients == pytest.approx((3.0, 3.0))
    assert report.observed.ladder == ((0.25, 5.75, 4.25), (0.5, 6.5, 3.5))
    assert report.observed.base == 5.0
    assert len(goal.asked) == len(set(goal.asked)) == 4 + 2 + 1, "eps 0.5 is measured anyway"


def test_without_trials_nothing_more_is_measured() -> None:
    goal = Slope()
    report = measure(
        cast(Any, None), Method(Spsa(2), cast(Any, goal), LanePlanner()), Draw(0, (), TWO, 0.5, 0.1), situation()
    )
    assert (report.observed.ladder, report.observed.base, len(goal.asked)) == ((), None, 4)


def test_points_that_are_not_finite_are_left_out() -> None:
    class Cliff(Slope):
        def measure(self, engine: Any, examples: Any, lanes: Sequence[Lane], spans: Any, at: Any) -> Measured:
            found = super().measure(engine, examples, lanes, spans, at)
            return replace(found, losses=tuple(float("nan") if loss > 6 else loss for loss in found.losses))

    draw = Draw(4, (), TWO, 0.125, 0.1, trials=(0.25, 0.5))
    report = measure(cast(Any, None), Method(Spsa(2), cast(Any, Cliff()), LanePlanner()), draw, situation())
    assert report.observed.ladder == ((0.25, 5.75, 4.25),)


def test_estimates_are_compared_where_both_are_finite() -> None:
    class Broken(Slope):
        """Lanes that read others' prefixes lead nowhere."""

        def measure(self, engine: Any, examples: Any, lanes: Sequence[Lane], spans: Any, at: Any) -> Measured:
            found = super().measure(engine, examples, lanes, spans, at)
            losses = [
                loss if lane.prefix == "own" else math.nan for loss, lane in zip(found.losses, lanes, strict=True)
            ]
            return replace(found, losses=tuple(losses))

    draw = Draw(0, (), TWO, 0.5, 0.1)
    for goal, compared in ((Slope(), True), (Broken(), False)):
        report = measure(cast(Any, None), Method(Spsa(2), cast(Any, goal), Reflected().planner()), draw, situation())
        assert report.estimate.gradients == pytest.approx((3.0, 3.0)), "those of the exact lanes"
        assert bool(report.observed.exact) == bool(report.observed.approximate) == compared


def test_a_goal_gives_scores_of_every_lane_and_of_no_other() -> None:
    class Extra(Slope):
        def measure(self, engine: Any, examples: Any, lanes: Sequence[Lane], spans: Any, at: Any) -> Measured:
            found = super().measure(engine, examples, lanes, spans, at)
            return replace(found, scores=((),) * (len(lanes) + 1))

    method = Method(Spsa(2), cast(Any, Extra()), LanePlanner())
    with pytest.raises(ValueError, match="longer"):
        measure(cast(Any, None), method, Draw(0, (), TWO, 0.5, 0.1), situation())


def test_a_goal_gives_a_loss_for_every_lane() -> None:
    class Forgetful(Slope):
        def measure(self, engine: Any, examples: Any, lanes: Sequence[Lane], spans: Any, at: Any) -> Measured:
            found = super().measure(engine, examples, lanes, spans, at)
            return replace(found, losses=found.losses[:-1])

    draw = Draw(0, (), TWO, 0.5, 0.1, trials=(0.25,))
    with pytest.raises(ValueError, match="shorter"):
        measure(cast(Any, None), Method(Spsa(2), cast(Any, Forgetful()), LanePlanner()), draw, situation())
