"""Each probe's own step length is that of the parabola through its two signs and the weights, as far as that is believed."""

import math
from collections.abc import Callable

import pytest

from twinpass.core import Probe
from twinpass.estimate.line import LineSearch

EPS = 0.5


@pytest.mark.parametrize(
    ("loss", "trust", "length"),
    [
        pytest.param(lambda x: 2 * (x - 0.3) ** 2, 1.0, -0.3, id="its lowest point is near"),
        pytest.param(lambda x: 2 * (x - 0.8) ** 2, 1.0, -0.5, id="or beyond what was measured"),
        pytest.param(lambda x: 2 * (x + 0.8) ** 2, 2.0, 0.8, id="which may be believed, too"),
        pytest.param(lambda x: x - x**2, 1.0, 0.5, id="it bends down"),
        pytest.param(lambda x: 3.0, 1.0, 0.0, id="it is flat"),
        pytest.param(lambda x: math.inf if x == 0 else x, 1.0, math.nan, id="there is none"),
    ],
)
def test_a_length_is_the_parabolas(loss: Callable[[float], float], trust: float, length: float) -> None:
    estimator, probes = LineSearch(probes=2, trust=trust), [Probe(1), Probe(2)]
    lanes = estimator.lanes(probes, EPS)
    # along the second probe nothing changes but for the sign
    losses = [loss(lane.scale * (1 if lane.probe in (None, probes[0]) else -1)) for lane in lanes]
    found = estimator.estimate(probes, EPS, losses)
    assert found.preconditioned == pytest.approx((length, -length), nan_ok=True)
