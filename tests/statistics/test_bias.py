"""Every policy and every estimator has the bias it declares: slopes of the error of g over four decades of eps, in float64."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from estimating import EXAMPLES, PROBES, engine, forward_mode, gradients, rms, second_step, slope, step, term
from numpy.typing import NDArray

from twinpass.config.schema import SECTIONS
from twinpass.core import StepReport
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.estimate.backprop import Backprop
from twinpass.estimate.base import Estimator
from twinpass.estimate.feedback import Feedback
from twinpass.estimate.gauss_newton import GaussNewton
from twinpass.estimate.jvp import Jvp
from twinpass.estimate.line import LineSearch
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.perturb.noise import derive_seed, reference
from twinpass.reuse.base import Policy
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.exact import Exact
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.reflected import Reflected
from twinpass.reuse.transported import Transported

pytestmark = forward_mode

SCALES = [10.0**k for k in (-6, -5, -4, -3, -2)]
"""Below, rounding is what is seen of the smallest errors; above, the loss saturates."""

TOLERANCE = 0.15
ALL = 1e9
"""A tolerance that accepts every layer."""

BIASED: Mapping[str, Policy] = {
    "reflected": Reflected(tolerance=ALL, check=0.0),
    "transported": Transported(tolerance=ALL, check=0.0),
    "frozen": Frozen(check=0.0),
}
"""Approximate policies whose error of g is of the order that they declare."""

UNBIASED: Mapping[str, Policy] = {
    "debiased": Debiased(inner=Frozen(), probability=0.3),
    "debiased reflected": Debiased(inner=Reflected(tolerance=ALL), probability=0.3),
}
"""Approximate policies that are right in expectation."""

ESTIMATORS: Mapping[str, type[Estimator]] = {
    "spsa": Spsa,
    "one_sided": OneSided,
    "line": LineSearch,
    "gauss_newton": GaussNewton,
}
"""Estimators with a finite difference in the weights; ``jvp``, which has none, is what they are held against; ``backprop`` is held against autograd (conformance/test_gradient.py)."""


def test_every_policy_has_a_row() -> None:
    kinds = SECTIONS["reuse"].kinds
    rows = {type(policy) for policy in (*BIASED.values(), *UNBIASED.values())}
    assert {kind for kind in kinds.values() if kind.approximate} == rows
    assert {name: kinds[name] for name in BIASED} == {name: type(policy) for name, policy in BIASED.items()}
    assert all(kind.bias_order is None for kind in kinds.values() if not kind.approximate)
    assert all(type(policy).bias_order is None for policy in UNBIASED.values())


def test_every_estimator_has_a_row() -> None:
    assert dict(SECTIONS["estimator"].kinds) == {**ESTIMATORS, "jvp": Jvp, "backprop": Backprop, "feedback": Feedback}


@pytest.mark.parametrize("name", BIASED)
def test_bias_of_policies(name: str) -> None:
    on, policy, errors = engine(), BIASED[name], []
    for eps in SCALES:
        report = second_step(on, policy, eps)
        assert_approximated(report)
        errors.append(rms(np.array(report.estimate.gradients) - gradients(on, Spsa(len(PROBES)), Exact(), eps)))
    assert slope(SCALES, errors) == pytest.approx(type(policy).bias_order, abs=TOLERANCE)


def assert_approximated(report: StepReport) -> None:
    assert report.observed.exact == ()
    assert report.observed.prefix.rejected == 0
    assert sum(report.work.reused[source] for source in ("reflected", "frozen") if source in report.work.reused) > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_bias_of_estimators(name: str) -> None:
    on, kind = engine(), ESTIMATORS[name]
    derivative = gradients(on, Jvp(len(PROBES)), Exact(), 1.0)
    errors = [rms(gradients(on, kind(len(PROBES)), Exact(), eps) - derivative) for eps in SCALES]
    assert slope(SCALES, errors) == pytest.approx(kind.bias_order, abs=TOLERANCE)
    assert errors[0] < 1e-3 * rms(derivative)


def test_the_derivative_is_that_of_backpropagation_at_any_eps() -> None:
    on = engine()
    found = gradients(on, Jvp(len(PROBES)), Exact(), 1.0)
    assert np.array_equal(found, gradients(on, Jvp(len(PROBES)), Exact(), 1e-3))
    expected = backpropagated(on)
    assert rms(found - expected) < 1e-9 * rms(expected)


def backpropagated(on: TorchEngine) -> NDArray[np.float64]:
    scores = []
    for example in EXAMPLES:
        for option in example.options:
            logits = on.model(input_ids=torch.tensor([example.prompt + option])).logits[0, len(example.prompt) - 1 : -1]
            scores.append(torch.log_softmax(logits, -1)[range(len(option)), option].sum())
    torch.autograd.backward([-torch.stack(scores).mean()])
    slopes = np.zeros(len(PROBES))
    for name, parameter in on.model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.numpy().reshape(-1)
        for k, probe in enumerate(PROBES):
            slopes[k] += gradient @ reference(probe.seed, name, 0, gradient.size, "binomial").astype(np.float64)
    return slopes


DRAWS, SIGMAS = 120, 4.0
"""Coins, and how many standard errors the mean of so many may be off: one seed in 16,000 would fail (two-sided)."""


@pytest.mark.full
@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_coins_is_unbiased(name: str) -> None:
    """Within its confidence interval around the exact g, outside of which the inner policy's estimate lies."""
    on, policy, eps, spsa = engine(), UNBIASED[name], 1e-2, Spsa(1)
    assert isinstance(policy, Debiased)
    history = [step(on, spsa, policy.inner, eps)]
    coins = [derive_seed(5, "check", draw) / 2**63 for draw in range(DRAWS)]
    draws = np.array([step(on, spsa, policy, eps, history, coin).estimate.gradients for coin in coins])
    exact, inner = gradients(on, spsa, Exact(), eps), gradients(on, spsa, policy.inner, eps, history)
    error = np.abs(exact - inner) * np.sqrt((1 / policy.probability - 1) / DRAWS)
    assert np.all(np.abs(draws.mean(0) - exact) < SIGMAS * error)
    assert np.all(np.abs(inner - exact) > 1.5 * SIGMAS * error)
    assert np.std(draws, 0) == pytest.approx(error * np.sqrt(DRAWS), rel=0.2)


@pytest.mark.full
@pytest.mark.parametrize(
    ("eps", "deltas", "order"),
    [
        (1e-6, [10.0**k for k in (-5.0, -4.0, -3.0, -2.0, -1.5)], 2),
        (1e-2, [10.0**k for k in (-7.0, -6.0, -5.0, -4.0, -3.0)], 1),
    ],
    ids=["updates longer than eps", "updates shorter than eps"],
)
def test_what_is_carried_is_off_by_the_update_times_its_distance_from_eps(
    eps: float, deltas: list[float], order: int
) -> None:
    """By (delta / 2) (delta - eps) D2, as the secant along eps moves it: delta^2, or, for short updates, delta eps."""
    assert slope(deltas, [carried_error(eps, delta) for delta in deltas]) == pytest.approx(order, abs=TOLERANCE)
    assert carried_error(eps, -deltas[0]) == pytest.approx(
        carried_error(eps, deltas[0]) * (eps + deltas[0]) / abs(eps - deltas[0]), rel=0.05
    )
    assert carried_error(eps, eps) < 1e-5 * carried_error(eps, -eps)


def test_trials_do_not_lead_what_is_carried_astray() -> None:
    """It moves along the step's own secant or a shorter one, not along a longer one that was tried as well."""
    eps, delta = 1e-2, 1e-4
    tried = carried_error(eps, delta, trials=(eps / 4, eps, eps * 4))
    assert tried < 1.01 * carried_error(eps, delta)


def carried_error(eps: float, delta: float, trials: Sequence[float] = ()) -> float:
    """How far one update of ``delta`` along z leaves what is carried from what a refresh computes, over |D1|."""
    on, policy = engine(), Transported(tolerance=ALL, check=0.0)
    step(on, Spsa(1), policy, eps, trials=trials)
    on.update([term(PROBES[0], delta)])
    carried = step(on, Spsa(1), policy, eps).observed.prefix.carried
    assert carried is not None
    return eps * carried
