"""The small tools beside SGD along probes, by hand: what becomes of projected gradients, and how far three losses say to go."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinpass.core import BASE, Estimate, Probe, StepReport
from twinpass.estimate.line import LineSearch
from twinpass.estimate.one_sided import OneSided
from twinpass.model.defaults import ADAPTERS
from twinpass.steps import Steps
from twinpass.train.history import History
from twinpass.train.normalised import Normalised
from twinpass.train.sign import Sign

EPS = 0.5


def estimate(*gradients: float) -> Estimate:
    probes = tuple(Probe(k) for k in range(len(gradients)))
    return Estimate(probes, EPS, ((1.0, 1.0),) * len(gradients), gradients)


def history(*steps: Sequence[float]) -> History:
    return History(Steps(StepReport(i, estimate(*row), tuple(row), 0.1) for i, row in enumerate(steps)))


def test_a_sign_moves_the_weights_by_eps() -> None:
    assert Sign(steps=9).lengths(estimate(3.0, -1e-9, 0.0, -7.0), history((2.0,))) == (EPS, -EPS, 0.0, -EPS)


def test_gradients_are_divided_by_their_running_root_mean_square() -> None:
    kind = Normalised(steps=9, beta=0.5)
    assert kind.lengths(estimate(-3.0), history()) == (-EPS,), "corrected for its start"
    assert kind.lengths(estimate(3.0, 4.0), history()) == pytest.approx((EPS * 3 / 12.5**0.5, EPS * 4 / 12.5**0.5))
    after = kind.lengths(estimate(4.0), history((2.0,)))
    assert after == pytest.approx((EPS * 4 / math.sqrt((0.25 * 4 + 0.5 * 16) / 0.75),))
    assert kind.lengths(estimate(0.0, 0.0), history((0.0, 0.0))) == (0.0, 0.0)


def test_a_rollback_forgets_the_size_of_what_was_taken_back() -> None:
    kind, past = Normalised(steps=9), history((1.0,), (50.0,))
    spoilt = kind.lengths(estimate(1.0), past)
    past.fold({"kind": "rollback", "to": 1, "lr_scale": 0.5, "discarded": 0})
    assert kind.lengths(estimate(1.0), past) == kind.lengths(estimate(1.0), history((1.0,))) != spoilt


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(-1000, 1000), min_size=2, max_size=2), max_size=8),
    st.integers(-(10**6), 10**6),
    st.floats(0.0, 0.99),
)
def test_no_gradient_counts_for_more_than_its_bound(past: list[list[int]], last: int, beta: float) -> None:
    kind = Normalised(steps=9, beta=beta)
    found = kind.lengths(estimate(float(last), 0.0), history(*past))
    assert abs(found[0]) <= EPS * math.sqrt(2 / (1 - beta)) * (1 + 1e-9)


def test_settings_that_would_take_in_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="set it below 1"):
        Normalised(steps=9, beta=1.0)


def test_left_alone_they_take_as_many_steps_as_adapters_do() -> None:
    assert Sign().steps == Normalised().steps == ADAPTERS.steps


# --- three losses along a line


def along(kind: LineSearch, slope: float, curvature: float) -> float:
    """How far it says to go where the loss is a parabola, in units of z."""
    losses = [5.0 + slope * t + curvature * t * t / 2 for t in (EPS, -EPS, 0.0)]
    (length,) = kind.estimate((Probe(1),), EPS, losses).preconditioned
    return length


@pytest.mark.parametrize(
    ("slope", "curvature", "length"),
    [
        (2.0, 4.0, 0.5),
        (-2.0, 4.0, -0.5),
        (2.0, 0.5, EPS),
        (3.0, 4.0, EPS),
        (-2.0, 0.0, -EPS),
        (2.0, -9.0, EPS),
        (0.0, 4.0, 0.0),
        (0.0, -4.0, 0.0),
    ],
    ids=[
        "its lowest point",
        "the other way",
        "too far to be believed",
        "just too far",
        "straight",
        "bent down",
        "there",
        "on a hill",
    ],
)
def test_the_lowest_point_of_a_parabola_as_far_as_it_is_believed(slope: float, curvature: float, length: float) -> None:
    assert along(LineSearch(), slope, curvature) == pytest.approx(length)
    assert along(LineSearch(trust=30.0), 2.0, 0.5) == pytest.approx(4.0)


def test_a_loss_that_is_not_finite_gives_no_length() -> None:
    for losses in ([1.0, 1.0, math.nan], [math.inf, 1.0, 1.0]):
        assert not math.isfinite(LineSearch().estimate((Probe(1),), EPS, losses).preconditioned[0])


def test_a_whole_step_never_raises_a_convex_quadratic() -> None:
    """Lines' lowest points, averaged over probes that may all be alike."""
    chance = np.random.default_rng(3)
    for _ in range(20):
        root, theta = chance.standard_normal((6, 2)), chance.standard_normal(6)
        directions = chance.standard_normal((1, 6)) + 0.1 * chance.standard_normal((5, 6))

        def loss(x: NDArray[np.float64], root: NDArray[np.float64] = root) -> float:
            return float(np.sum((root.T @ x - 1) ** 2))

        lanes = LineSearch(5).lanes([Probe(k) for k in range(5)], 1e-2)
        moved = [theta if lane.probe is None else theta + lane.scale * directions[lane.probe.seed] for lane in lanes]
        found = LineSearch(5, trust=1e6).estimate([Probe(k) for k in range(5)], 1e-2, [loss(x) for x in moved])
        after = theta - np.array(found.preconditioned) @ directions / 5
        assert loss(after) < loss(theta)


@pytest.mark.parametrize("kind", [OneSided(4), LineSearch(4)])
def test_probes_share_one_base_lane(kind: OneSided | LineSearch) -> None:
    lanes = kind.lanes([Probe(k) for k in range(4)], EPS)
    assert lanes.count(BASE) == 1
    assert len(lanes) == {OneSided: 5, LineSearch: 9}[type(kind)]


def test_fzoo_is_one_sided_and_normalised() -> None:
    """Its update by the paper's formula (arXiv 2506.09034): ``eta / (eps N sigma) sum (l_i - l_0) u_i``; our lr is eta / eps."""
    losses, eta = [1.0, 1.5, 0.75, 2.0], 0.3
    sigma = float(np.std(losses[1:], ddof=1))
    paper = [eta * (loss - losses[0]) / (EPS * 3 * sigma) for loss in losses[1:]]
    found = OneSided(3, normalise=True).estimate([Probe(k) for k in range(3)], EPS, losses)
    report = StepReport(0, found, found.gradients, eta / EPS)
    assert [-term.scale for term in report.terms] == pytest.approx(paper)
