"""One-sided estimates by hand: what is divided by, and where nothing can be."""

import pytest

from twinpass.core import Probe
from twinpass.estimate.one_sided import OneSided

PROBES = (Probe(1), Probe(2), Probe(3))


def test_gradients_are_differences_to_the_base_over_eps() -> None:
    found = OneSided(3).estimate(PROBES, 0.5, [1.0, 2.0, 4.0, 0.0])
    assert found.gradients == (2.0, 6.0, -2.0)
    assert found.losses == ((2.0, 1.0), (4.0, 1.0), (0.0, 1.0))


def test_or_over_the_standard_deviation_of_a_sample() -> None:
    found = OneSided(3, normalise=True).estimate(PROBES, 0.5, [1.0, 2.0, 4.0, 0.0])
    assert found.gradients == pytest.approx((0.5, 1.5, -0.5))


def test_equal_losses_say_nothing() -> None:
    assert OneSided(3, normalise=True).estimate(PROBES, 0.5, [1.0, 3.0, 3.0, 3.0]).gradients == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="set probes to 2 or more"):
        OneSided(1, normalise=True)


def test_two_probes_have_a_standard_deviation() -> None:
    found = OneSided(2, normalise=True).estimate(PROBES[:2], 0.5, [1.0, 2.0, 4.0])
    assert found.gradients == pytest.approx((0.5**0.5, 3 * 0.5**0.5))
