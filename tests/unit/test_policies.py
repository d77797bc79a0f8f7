"""Reflected and transported prefixes as pure functions: what is accepted, measured, carried, from what steps measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import EPS, ONE, SEEN, TWO, pairs, prefixes, report, situation

from twinpass.config.engines import SglangSettings
from twinpass.core import BASE, Lane, StepReport
from twinpass.estimate.one_sided import OneSided
from twinpass.reuse.activated import ActivatedReuse
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Circumstances, Policy, Sharing, Trains
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.exact import Exact
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.invariant import Invariant
from twinpass.reuse.plan import LanePlan, Spans
from twinpass.reuse.reflected import Reflected, accepted_layers, expected_errors
from twinpass.reuse.transported import Transported


@pytest.mark.parametrize("policy", [Reflected(), Transported(), Frozen(), Debiased(inner=Reflected())], ids=str)
@pytest.mark.parametrize(
    ("trains", "instead"),
    [
        (Trains(3, 0, activated=True, varies=False), "activated"),
        (Trains(3, 1, activated=False, varies=False), "invariant"),
        (Trains(3, 0, activated=False, varies=True), "invariant"),
    ],
)
def test_approximations_are_refused_where_an_exact_policy_shares_more(
    policy: Policy, trains: Trains, instead: str
) -> None:
    with pytest.raises(ValueError, match=f"use policy = '{instead}'"):
        policy.sharing(trains)
    assert policy.sharing(Trains(3, 0, activated=False, varies=False)) is None


def test_auto_shares_what_the_policy_that_suits_shares() -> None:
    for trains, policy in (
        (Trains(3, 0, activated=True), ActivatedReuse()),
        (Trains(3, 2, activated=True), ActivatedReuse()),
        (Trains(3, 1), Invariant()),
    ):
        assert Auto().sharing(trains) == policy.sharing(trains) is not None
    assert Auto().sharing(Trains(3, 0)) is None


def test_what_is_shared_is_counted_under_its_policys_name() -> None:
    assert ActivatedReuse().sharing(Trains(3, 2, activated=True)) == Sharing(
        "activated", "before_activation", 3, True, 2
    )
    assert Exact().sharing(Trains(3, 2, activated=True)) == Sharing("activated", "before_activation", 3, False)
    assert Invariant().sharing(Trains(3, 0, varies=True)) is None
    assert Invariant().sharing(Trains(3, 1, varies=True)) == Invariant().sharing(Trains(3, 1)) is not None
    with pytest.raises(ValueError, match="nothing lies below the first trained layer"):
        Invariant().sharing(Trains(3, 0))


@pytest.mark.parametrize("policy", [Exact(), Reflected(), Transported(), Frozen(), Debiased(inner=Frozen())], ids=str)
def test_an_engine_cannot_plan_and_a_trainer_cannot_share(policy: Policy) -> None:
    def methods(of: object) -> set[str]:
        return {name for name in dir(type(of)) if not name.startswith("_") and callable(getattr(of, name))}

    assert {"sharing", "planner"} <= methods(policy)
    assert {"plan", "accepted"} <= methods(policy.planner())
    assert not methods(policy) & methods(policy.planner())


def objections(policy: Policy, *, activated: bool = False, upper: bool | None = None, tandem: bool = True) -> str:
    to = Circumstances(activated, upper, 2, two_sided=True, differentiates=False, tandem=tandem)
    return "\n".join(policy.objections(to))


def test_policies_object_to_weights_that_leave_them_nothing() -> None:
    for policy in (Reflected(), Transported(), Frozen(), Debiased(inner=Frozen())):
        for exact in ({"activated": True}, {"upper": True}):
            assert "approximates what these weights let share exactly; use 'auto'" in objections(policy, **exact)
        assert "needs all lanes in one pass" in objections(policy, tandem=False)
        assert objections(policy) == objections(policy, upper=False) == ""
    assert "there are none" in objections(Invariant(), upper=False)
    assert objections(Invariant(), upper=True) == objections(Invariant()) == ""
    assert "activated adapters share more than layers" in objections(Invariant(), activated=True)


# --- acceptance


@pytest.mark.parametrize(
    ("errors", "eps", "layers"),
    [
        ((0.1, 0.2, 0.3), EPS, 2),
        ((0.1, 0.2, 0.3), 2 * EPS, 1),
        ((0.1, 0.2, 0.3), 2.1 * EPS, 0),
        ((0.1, 0.2, 0.3), EPS / 2, 3),
        ((0.1, 0.5, 0.1), EPS, 1),
        ((0.0, 0.0, 1e9), 1e-9, 2),
        ((), EPS, 3),
    ],
)
def test_layers_are_accepted_up_to_the_first_error_above_the_tolerance(
    errors: tuple[float, ...], eps: float, layers: int
) -> None:
    known = situation(report(errors))
    assert accepted_layers(eps, known, 0.2) == layers
    for policy in (Reflected(), Transported(), Debiased(inner=Reflected())):
        assert policy.planner().accepted(eps, known) == layers / 3


def test_policies_that_reflect_nothing_have_no_share_of_acceptance() -> None:
    for policy in (Exact(), Auto(), Frozen(), Debiased(inner=Frozen())):
        assert policy.planner().accepted(EPS, situation(SEEN)) is None


def test_the_last_measurement_counts() -> None:
    known = situation(report((0.0, 0.0, 0.0)), report((0.1, 9.0, 0.0), eps=2 * EPS), report())
    assert expected_errors(4 * EPS, known) == pytest.approx([0.2, 18.0, 0.0])
    assert accepted_layers(EPS, known, 0.2) == 1
    assert accepted_layers(4 * EPS, known, 0.2) == 1
    assert accepted_layers(4.1 * EPS, known, 0.2) == 0


@pytest.mark.parametrize("at", [0.1 * EPS, EPS, 7 * EPS])
def test_two_measurements_tell_rounding_from_reflection(at: float) -> None:
    """``e^2 = (a / eps)^2 + (b eps)^2``; below the eps where both are alike, smaller is not better."""

    def law(eps: float) -> list[float]:
        return [float(np.hypot(a * EPS / eps, b * eps / EPS)) for a, b in ((0.0, 0.3), (0.1, 0.2), (0.4, 0.0))]

    known = situation(report(law(0.5 * EPS), eps=0.5 * EPS), report(law(3 * EPS), eps=3 * EPS), report())
    assert expected_errors(at, known) == pytest.approx(law(at))


def test_errors_that_fit_no_law_are_bounded_by_both() -> None:
    """Grown faster than eps: all of it is reflection. Fallen faster than 1 / eps: all of it is rounding."""
    known = situation(report((0.01, 1.0), eps=EPS / 2), report((1.0, 0.01)))
    assert expected_errors(2 * EPS, known) == pytest.approx([2.0, 0.005])


errors = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(errors, st.floats(1e-6, 1.0), st.floats(1.0, 100.0), st.floats(0.01, 5.0))
def test_a_larger_eps_never_accepts_more(measured: list[float], eps: float, factor: float, tolerance: float) -> None:
    known = situation(report(measured), layers=len(measured))
    fewer, more = (accepted_layers(e, known, tolerance) for e in (eps * factor, eps))
    assert 0 <= fewer <= more <= len(measured)
    assert all(error * eps / EPS <= tolerance for error in measured[:more])


# --- reflected


def test_reflected_measures_first_then_takes_minus_lanes_from_the_reflection() -> None:
    first = Reflected().planner().plan(pairs(), situation())
    assert prefixes(first) == ["own", "reflected", "own", "reflected"]
    assert first.spans == Spans("prompt", 3)
    assert first.twins == (Lane(TWO[0], -1, EPS), Lane(TWO[1], -1, EPS))
    assert (first.weight, first.exact) == (1.0, pairs())
    later = Reflected().planner().plan(pairs(), situation(SEEN))
    assert (prefixes(later), later.spans, later.twins) == (prefixes(first), Spans("prompt", 2), ())


@pytest.mark.parametrize(
    ("factor", "coin", "measures"),
    [
        (1.0, 0.99, False),
        (1.0, 0.05, False),
        (1.0, 0.049, True),
        (4.0, 0.99, False),
        (4.1, 0.99, True),
        (0.25, 0.99, False),
        (0.24, 0.99, True),
    ],
)
def test_reflected_measures_when_the_coin_says_so_or_eps_has_moved(factor: float, coin: float, measures: bool) -> None:
    policy = Reflected(tolerance=100.0)
    assert bool(policy.planner().plan(pairs(eps=EPS * factor), situation(SEEN, coin=coin)).twins) == measures


def test_where_nothing_is_accepted_lanes_are_exact_unless_measured() -> None:
    hopeless = report((1e9, 0.0, 0.0))
    assert Reflected().planner().plan(pairs(), situation(hopeless)) == LanePlan(tuple(pairs()))
    measuring = Reflected().planner().plan(pairs(), situation(hopeless, coin=0.0))
    assert measuring.spans == Spans("prompt", 0)
    assert len(measuring.twins) == 2


def test_without_minus_lanes_there_is_nothing_to_reflect() -> None:
    lanes = OneSided(2).lanes(TWO, EPS)
    assert Reflected().planner().plan(lanes, situation(coin=0.0)) == LanePlan(tuple(lanes))


# --- transported


@pytest.mark.parametrize(
    ("steps", "coin", "base"),
    [
        ([], 0.99, "keep"),
        ([report((0.1, 0.2, 0.3), age=0)], 0.99, "carried"),
        ([report((0.1, 0.2, 0.3), age=0)], 0.0, "keep"),
        ([report((0.1, 0.2, 0.3), age=30)], 0.99, "carried"),
        ([report((0.1, 0.2, 0.3), age=31)], 0.99, "keep"),
        ([report((0.1, 0.2, 0.3), age=0), report()], 0.99, "keep"),
        ([report((0.1, 0.2, 0.3), eps=EPS / 5, age=0)], 0.99, "keep"),
    ],
    ids=["first", "carried", "measured", "old", "too old", "nothing carried", "eps moved"],
)
def test_transported_carries_until_it_is_due_or_measures(steps: list[StepReport], coin: float, base: str) -> None:
    plan = Transported(tolerance=1.0).planner().plan(pairs(), situation(*steps, coin=coin))
    assert plan.spans is not None
    assert plan.spans.base == base


def test_transported_takes_the_returning_prefix_with_one_pair_the_whole_one_with_more() -> None:
    known = situation(report((0.1, 0.2, 0.3), age=0))
    assert Transported().planner().plan(pairs(ONE), known).spans == Spans("returning", 2, "carried")
    assert Transported().planner().plan(pairs(TWO), known).spans == Spans("prompt", 2, "carried")


def test_transported_serves_the_base_lane_of_one_sided_estimates() -> None:
    lanes, known = OneSided(2).lanes(TWO, EPS), situation(report(age=0))
    plan = Transported().planner().plan(lanes, known)
    assert (prefixes(plan), plan.spans, plan.twins) == (["base", "own", "own"], Spans("returning", 3, "carried"), ())
    measuring = Transported().planner().plan(lanes, situation(report(age=0), coin=0.0))
    assert (measuring.twins, measuring.exact) == ((BASE,), lanes)
    refreshed = Transported().planner().plan(lanes, situation(coin=0.0))
    assert refreshed.spans == Spans("returning", 3, "keep")
    assert refreshed.twins == ()  # what was just computed is exact


@pytest.mark.parametrize(
    ("found", "limit"),
    [
        ([], 32),
        ([(31, 0.3)], 16),
        ([(31, 0.3), (15, 0.3)], 8),
        ([(31, 0.3), (15, 0.1)], 16),
        ([(31, 0.3), (15, 0.05)], 16),
        ([(31, 0.3), (15, 0.049)], 32),
        ([(31, 0.01)], 32),
        ([(0, 0.3)], 1),
        ([(0, 0.3), (0, 0.3)], 1),
        ([(0, 0.3), (0, 0.01), (1, 0.01)], 4),
        ([(9, 0.2)], 32),
        ([(9, None)], 32),
    ],
)
def test_refreshes_come_sooner_after_large_errors_and_later_after_small(
    found: list[tuple[int, float | None]], limit: int
) -> None:
    """``found``: how old what was carried had become, and how far off it was then."""
    steps = [step for age, carried in found for step in (report(age=age), report(age=0, carried=carried))]
    assert Transported().planner().limit(situation(*steps)) == limit
    for age in (limit - 2, limit - 1):
        known = situation(*steps, report((0.0, 0.0, 0.0), age=max(0, age)))
        spans = Transported().planner().plan(pairs(), known).spans
        assert spans is not None
        assert (spans.base == "keep") == (max(0, age) >= limit - 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 70), st.none() | st.floats(0.0, 1.0)), max_size=8), st.integers(1, 64))
def test_the_limit_stays_within_its_bounds(found: list[tuple[int, float | None]], refresh: int) -> None:
    steps = [report(age=age % refresh, carried=carried) for age, carried in found]
    assert 1 <= Transported(refresh=refresh).planner().limit(situation(*steps)) <= refresh


class Lower(Policy):
    """Of another package: lanes share what lies below the first trained layer."""

    def sharing(self, trains: Trains) -> Sharing | None:
        return Sharing("lower", "all", trains.first, kept=False)


@pytest.mark.parametrize(
    ("members", "instead"),
    [
        ({"approximate": True, "plan": lambda self, lanes, situation: None}, "move it to a LanePlanner"),
        ({"plan": lambda self, lanes, situation: None}, "move it to a LanePlanner"),
        ({"approximate": True}, "subclass Approximation"),
        ({"spill": None}, "its property disk"),
    ],
)
def test_a_policy_of_an_older_form_is_refused_where_it_is_made(members: dict[str, object], instead: str) -> None:
    """Nothing would be asked of it, so that it would be exact, or keep nothing on disk, silently."""
    with pytest.raises(TypeError, match=rf"^Older: .*{instead} \(docs/extending\.md"):
        type("Older", (Lower,), members)
    type("Newer", (Lower,), {"spill": None, "disk": property(lambda self: self.spill)})


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        (Lower(), True),
        (Invariant(), True),
        (Frozen(), True),
        (Auto(), False),
        (Exact(), False),
        (ActivatedReuse(), False),
    ],
    ids=str,
)
def test_sglang_refuses_a_policy_whose_sharing_it_does_not_know(policy: Policy, refused: bool) -> None:
    problems = SglangSettings().problems({"reuse": policy})
    assert ["reuses what is exact within a lane" in problem for problem in problems] == [True] * refused
