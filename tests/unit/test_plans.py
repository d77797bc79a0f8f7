"""Plans of every policy, frozen and debiased above all: what is scored, and how estimates are put together."""

import math
import re
from collections.abc import Mapping, Sequence

import pytest
from planning import EPS, ONE, SEEN, TWO, pairs, prefixes, report, situation
from pydantic import ValidationError

from twinpass.config.schema import SECTIONS
from twinpass.core import BASE, Estimate, Lane, Probe, StepReport
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Policy
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.exact import Exact
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.plan import LanePlan, Spans, combine
from twinpass.reuse.reflected import Reflected
from twinpass.reuse.transported import Transported

# --- frozen and debiased


def test_frozen_reads_the_base_lane_and_only_watches_exact_lanes() -> None:
    plan = Frozen().planner().plan(pairs(), situation())
    assert prefixes(plan) == ["base"] * 4
    assert (plan.spans, plan.twins, plan.weight) == (Spans("prompt", 3), tuple(pairs()), 0.0)
    assert Frozen().planner().plan(pairs(), situation(SEEN)).twins == ()
    assert Frozen().planner().plan(pairs(), situation(SEEN, coin=0.049)).twins == tuple(pairs())
    assert Frozen(check=0.0).planner().plan(pairs(), situation(SEEN, coin=0.0)).twins == (), (
        "never, if that is the chance"
    )


def test_cautions_are_finished_sentences() -> None:
    for kind in SECTIONS["reuse"].kinds.values():
        assert re.search(r"[A-Z]+_[A-Z]+", kind.caution) is None, "a number is still to be filled in"


INNER: Mapping[str, Policy] = {"frozen": Frozen(), "reflected": Reflected(), "transported": Transported()}
HISTORIES: Mapping[str, Sequence[StepReport]] = {
    "none": (),
    "measured": (report((0.1, 0.2, 0.3), age=0, exact=(1.0,)),),
    "elsewhere": (report((0.1, 0.2, 0.3), eps=EPS / 9, age=0, exact=(1.0,)),),
    "old": (report((0.1, 0.2, 9.0), age=40),),
    "hopeless": (report((9.0, 9.0, 9.0), age=1),),
}


@pytest.mark.parametrize("estimator", [Spsa(1), Spsa(2), OneSided(2)], ids=["one pair", "two pairs", "one-sided"])
@pytest.mark.parametrize("steps", HISTORIES)
@pytest.mark.parametrize("inner", INNER)
def test_the_coin_never_changes_the_inner_plan(inner: str, steps: str, estimator: Spsa | OneSided) -> None:
    lanes = estimator.lanes(TWO[: estimator.probes], EPS)
    planner = Debiased(inner=INNER[inner], probability=0.25).planner()
    plans = [planner.plan(lanes, situation(*HISTORIES[steps], coin=coin)) for coin in (0.0, 0.04, 0.24, 0.25, 0.99)]
    assert len({(plan.lanes, plan.spans) for plan in plans}) == 1
    own = INNER[inner].planner().plan(lanes, situation(*HISTORIES[steps], coin=1.0))
    assert (plans[0].lanes, plans[0].spans) == (own.lanes, own.spans)
    if own.twins and own.weight == 1.0:
        assert plans == [own] * 5
    else:
        assert [plan.twins for plan in plans] == [plans[0].twins] * 3 + [()] * 2
        assert not plans[0].twins or {plan.weight for plan in plans[:3]} == {4.0}


def test_debiased_runs_all_lanes_exactly_that_the_inner_policy_did_not() -> None:
    known = situation(report((0.1, 0.2, 0.3), age=0), coin=0.0)
    minus, ends = tuple(lane for lane in pairs() if lane.sign < 0), OneSided(1).lanes(ONE, EPS)
    assert Debiased(inner=Frozen()).planner().plan(pairs(), known).twins == tuple(pairs())
    assert Debiased(inner=Reflected()).planner().plan(pairs(), known).twins == minus
    assert Debiased(inner=Transported()).planner().plan(ends, known).twins == (BASE,)
    assert Debiased(inner=Frozen()).planner().plan(ends, known).twins == (
        ends[1],
    )  # the base lane's own prefix is exact


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"inner": Frozen(), "probability": 0.0}, "probability: must be above 0"),
        ({"inner": Frozen(), "probability": 1.1}, "less than or equal to 1"),
        ({"inner": Debiased(inner=Frozen())}, "inner: there is no bias to correct"),
        ({"inner": Exact()}, "inner: there is no bias to correct"),
        ({"inner": Auto()}, "choose 'frozen', 'reflected' or 'transported'"),
        ({"inner": Frozen(check=0.5)}, "inner: check has no effect there; set probability of"),
        ({"inner": Reflected(budget=1)}, "inner: budget has no effect there; set budget of"),
        ({"inner": Transported(page_size=16)}, "inner: page_size has no effect there; set page_size of"),
        ({"inner": "frozen"}, "instance of Policy"),
        ({}, "required"),
    ],
)
def test_debiased_needs_a_bias_and_a_chance(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Debiased(**keys)  # type: ignore[arg-type]


# --- plans


def test_exact_policies_plan_the_lanes_as_they_are() -> None:
    for kind in SECTIONS["reuse"].kinds.values():
        if not kind.approximate:
            assert kind().planner().plan(pairs(), situation(SEEN, coin=0.0)) == LanePlan(tuple(pairs()))


@pytest.mark.parametrize("steps", HISTORIES)
@pytest.mark.parametrize("coin", [0.0, 0.99])
@pytest.mark.parametrize("name", [*INNER, "debiased"])
def test_every_plan_scores_the_same_weights_and_can_be_scored(name: str, coin: float, steps: str) -> None:
    planner = (Debiased(inner=Transported()) if name == "debiased" else INNER[name]).planner()
    for lanes in (pairs(ONE), pairs(TWO), OneSided(2).lanes(TWO, EPS)):
        known = situation(*HISTORIES[steps], coin=coin)
        plan = planner.plan(lanes, known)
        assert plan == planner.plan(lanes, known)
        assert [lane.exact for lane in plan.lanes] == lanes
        assert set(plan.twins) <= set(lanes)
        assert (plan.spans is None) == all(lane.prefix == "own" for lane in plan.lanes)
        for lane in plan.lanes:
            assert lane.prefix != "reflected" or Lane(lane.probe, -lane.sign, lane.eps) in plan.lanes


def test_exact_takes_the_twins_that_there_are() -> None:
    plus, minus = pairs(ONE)
    mirrored = Lane(ONE[0], -1, EPS, "reflected")
    assert LanePlan((plus, mirrored), twins=(minus,)).exact == [plus, minus]
    assert LanePlan((plus, mirrored)).exact == [plus, mirrored]
    assert Lane(ONE[0], -1, EPS, "base", linear=True).exact == Lane(ONE[0], -1, EPS, linear=True)


def estimate(*gradients: float) -> Estimate:
    return Estimate(tuple(Probe(k) for k in range(len(gradients))), EPS, ((0.0, 0.0),) * len(gradients), gradients)


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.0, (1.0, -2.0)), (1.0, (3.0, 2.0)), (0.5, (2.0, 0.0)), (4.0, (9.0, 14.0))]
)
def test_estimates_are_combined_probe_by_probe(weight: float, expected: tuple[float, ...]) -> None:
    assert combine(LanePlan((), weight=weight), estimate(1.0, -2.0), estimate(3.0, 2.0)) == expected


def test_estimates_of_other_probes_are_not_combined() -> None:
    with pytest.raises(ValueError, match="longer"):
        combine(LanePlan((), weight=0.5), estimate(1.0, -2.0), estimate(3.0, 2.0, 1.0))


@pytest.mark.parametrize("approximate", [math.nan, math.inf, 1e17])
def test_where_exact_lanes_ran_the_estimate_is_theirs(approximate: float) -> None:
    """A step that measures uses them, however bad the reflection was."""
    assert combine(LanePlan((), weight=1.0), estimate(approximate), estimate(0.3)) == (0.3,)
