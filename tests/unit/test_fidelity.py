"""Fidelity: known pairs of estimates and exact gradients, and what cannot be compared."""

import math
from collections.abc import Sequence

import pytest

from twinpass.core import Estimate, Observation, Probe, StepReport
from twinpass.report.fidelity import Fidelity


@pytest.mark.parametrize(
    ("estimates", "exact", "expected"),
    [
        ([3.0, -4.0], [3.0, -4.0], Fidelity(0.0, 1.0, 1.0, 2)),
        ([6.0, -8.0], [3.0, -4.0], Fidelity(1.0, 1.0, 1.0, 2)),
        ([-3.0, 4.0], [3.0, -4.0], Fidelity(2.0, -1.0, 0.0, 2)),
        ([3.0, 1.0], [3.0, -4.0], Fidelity(1.0, 1.0, 0.5, 2)),
        ([1.0, 0.0, 2.0], [1.0, 1.0, 1.0], Fidelity(math.sqrt(2 / 3), None, 2 / 3, 3)),
        ([1.0, 1.0, 1.0], [1.0, 0.0, 2.0], Fidelity(math.sqrt(2 / 5), None, 2 / 3, 3)),
        ([0.5], [1.0], Fidelity(0.5, None, 1.0, 1)),
        ([0.0, 0.0], [0.0, 0.0], Fidelity(0.0, None, 1.0, 2)),
        ([0.0, 1e-9], [0.0, 0.0], Fidelity(1.0, None, 0.5, 2)),
        ([1.0, 2.0, 4.0], [1.0, 3.0, 2.0], Fidelity(math.sqrt(5 / 14), math.sqrt(3 / 28), 1.0, 3)),
    ],
)
def test_estimates_beside_exact_ones(estimates: Sequence[float], exact: Sequence[float], expected: Fidelity) -> None:
    found = Fidelity.of(estimates, exact)
    assert (found.correlation is None) == (expected.correlation is None)
    assert found.relative_error == pytest.approx(expected.relative_error)
    assert found.correlation == pytest.approx(expected.correlation)
    assert found.sign_agreement == pytest.approx(expected.sign_agreement)
    assert found.probes == expected.probes


@pytest.mark.parametrize(("estimates", "exact"), [([], []), ([1.0], []), ([], [1.0]), ([1.0], [1.0, 2.0])])
def test_what_cannot_be_compared(estimates: Sequence[float], exact: Sequence[float]) -> None:
    with pytest.raises(
        ValueError, match=rf"{len(estimates)} estimates cannot be compared with {len(exact)} exact ones"
    ):
        Fidelity.of(estimates, exact)


def step(approximate: Sequence[float] = (), exact: Sequence[float] = ()) -> StepReport:
    observed = Observation(approximate=tuple(approximate), exact=tuple(exact))
    return StepReport(0, Estimate((Probe(1),), 1e-3, ((9.0, 8.0),), (7.0,)), (7.0,), 0.0, observed=observed)


def test_steps_that_measured_are_taken_together() -> None:
    steps = [step(), step([1.0, 2.0], [1.0, 3.0]), step(), step([4.0], [2.0])]
    assert Fidelity.measured(steps) == Fidelity.of([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert Fidelity.measured([step(), step()]) is None
    assert Fidelity.measured([]) is None
