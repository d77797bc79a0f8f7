"""Sampling: compiled noise is the definition and Gumbel's, and what is picked is the largest of log-probabilities and noise."""

import numpy as np
import pytest
from numba import njit
from scipy.stats import kstest

from twinpass.perturb.noise import F32
from twinpass.perturb.race import PART, gumbel, pick, reference
from twinpass.perturb.vectorised import exp

NANS = (0x7FC00000, 0xFFC00000)
"""Bits of two: the usual one, and what x86 makes of inf - inf."""


@pytest.mark.parametrize("size", [1, 4, 97, 1026])
def test_compiled_noise_is_the_definition(size: int) -> None:
    names = ["0/0/0", "3/1/2", "3/12/0"]
    found = gumbel(2**63 + 5, names, size)
    assert found.dtype == np.float32
    for row, name in zip(found, names, strict=True):
        assert np.array_equal(row, reference(2**63 + 5, name, size))


def test_noise_is_gumbels() -> None:
    noise = gumbel(7, [f"{i}/0/0" for i in range(20)], 10000)
    assert np.isfinite(noise).all()
    assert kstest(noise.ravel(), "gumbel_r").pvalue > 1e-3
    correlations = np.asarray(np.corrcoef(noise))
    assert np.abs(correlations[np.triu_indices(20, 1)]).max() < 0.045


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("size", [1, 5, PART, 3 * PART + 17])
def test_the_first_of_the_largest_is_picked(size: int, temperature: float) -> None:
    random = np.random.default_rng(size)
    logits = np.round(random.normal(0, 3, (9, size)), 1).astype(np.float32)  # many alike
    noise, which = gumbel(3, ["a", "b"], size), random.integers(0, 2, 6)
    rows = random.permutation(9)[:6]
    tokens, logprobs = pick(logits, rows, noise, which, temperature)
    own = logits[rows].astype(np.float64)
    expected = own - np.log(np.exp(own).sum(1, keepdims=True))
    scores = expected / temperature + noise[which] if temperature else own
    assert np.array_equal(tokens, scores.argmax(1))
    assert logprobs == pytest.approx(expected[np.arange(6), tokens], abs=5e-6)
    for row in range(6):  # a row is chosen alike beside any others
        alone = pick(logits, rows[row : row + 1], noise, which[row : row + 1], temperature)
        assert (alone[0][0], alone[1][0]) == (tokens[row], logprobs[row])


@pytest.mark.parametrize("bits", NANS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_seen(temperature: float, bits: int) -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[0, 7] = logits[2] = np.uint32(bits).view(np.float32)
    logits[1, :30] = -np.inf
    tokens, logprobs = pick(logits, np.arange(3), np.zeros((1, 40), np.float32), np.zeros(3, np.int64), temperature)
    assert np.isnan(logprobs[[0, 2]]).all()
    assert tokens[1] == 30
    assert logprobs[1] == pytest.approx(-np.log(10))


def test_exponential() -> None:
    x = np.concatenate([-np.logspace(-8, 1.9, 4000), np.linspace(-87, 0, 4001)]).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(_exps(x) - expected) / expected).max() < 2.5e-7
    assert _exps(np.array([-np.inf], np.float32))[0] < 2e-38
    assert np.isnan(_exps(np.array(NANS, np.uint32).view(np.float32).repeat(20))).all()


@njit  # type: ignore[untyped-decorator]
def _exps(x: F32) -> F32:
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = exp(x[i])
    return out
