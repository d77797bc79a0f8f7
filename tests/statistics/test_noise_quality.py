"""Is ``z`` what its definition says, and independent across seeds, names and positions?

Every check turns 2**20 elements into a two-sided p-value. For noise as defined it falls below ``ALPHA`` with
probability 1e-6, so all of the roughly 300 checks together raise a false alarm with probability below 1e-3. The
seeds are fixed and the noise is a pure function of them: a check that passes today passes for ever, and the error
rate is that of changing the noise. Shifts of a mean or a correlation of 0.71 % are found with probability 99 %.

That the checks can fail is shown by negative controls: each of them has to reject, at the same ``ALPHA``, a
generator that is broken in the way it looks for.
"""

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial

import numeric
import numpy as np
import pytest
from noise_checks import (
    CHECKS,
    COUNT,
    F64,
    KINDS,
    LAGS,
    NAME,
    NAMES,
    OTHER_SEEDS,
    Draw,
    Kind,
    applies,
    drawn,
    exact_moment,
    magnitude,
    p_of_correlation,
    stream,
)
from scipy import stats

from twinpass.perturb import noise
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

Defect = Callable[[Draw, int, str], F64]
ALPHA = 1e-6
SEEDS = (0, 5775161032549016772, 2**64 - 1)
one_thread = numeric.one_thread


def shifted(draw: Draw, seed: int, name: str) -> F64:
    return draw(seed, name) + 0.01


def widened(draw: Draw, seed: int, name: str) -> F64:
    return draw(seed, name) * 1.01


def skewed(draw: Draw, seed: int, name: str) -> F64:
    x = draw(seed, name)
    return x + 0.01 * (x * x - 1)


def mixed_scales(draw: Draw, seed: int, name: str) -> F64:
    """Variance 1, but half the values are drawn wider than the others."""
    x = draw(seed, name).copy()
    x[0::2] *= math.sqrt(1.2)
    x[1::2] *= math.sqrt(0.8)
    return x


def coarse(draw: Draw, seed: int, name: str) -> F64:
    return np.rint(draw(seed, name) * 16) / 16


def even_counts(draw: Draw, seed: int, name: str) -> F64:
    return np.floor(draw(seed, name))


def parity(draw: Draw, seed: int, name: str) -> F64:
    """Every eighth sign is the product of the two before it: balanced, and uncorrelated with each."""
    x = draw(seed, name).copy()
    x[7::8] = x[5::8] * x[6::8]
    return x


def stuck_place(draw: Draw, seed: int, name: str) -> F64:
    x = draw(seed, name).copy()
    x[37::128] = np.abs(x[37::128])
    return x


def repeated(lag: int, *, signs: bool = False) -> Defect:
    """Every second run of ``lag`` values repeats the one before it, if ``signs`` then with fair signs of its own."""

    def defect(draw: Draw, seed: int, name: str) -> F64:
        x = draw(seed, name).copy()
        runs = x[: len(x) // (2 * lag) * (2 * lag)].reshape(-1, 2, lag)
        runs[:, 1] = np.abs(runs[:, 0]) * np.sign(runs[:, 1]) if signs else runs[:, 0]
        return x

    return defect


def shared_between_seeds(draw: Draw, seed: int, name: str) -> F64:
    """A hundredth of the variance comes from a stream that all seeds share."""
    return (draw(seed, name) + 0.1 * draw(12345, name)) / math.sqrt(1.01)


def shared_between_names(draw: Draw, seed: int, name: str) -> F64:
    return (draw(seed, name) + 0.1 * draw(seed, "shared")) / math.sqrt(1.01)


def magnitudes_shared_between_seeds(draw: Draw, seed: int, name: str) -> F64:
    return np.abs(draw(12345, name)) * np.sign(draw(seed, name))


def magnitudes_shared_between_names(draw: Draw, seed: int, name: str) -> F64:
    return np.abs(draw(seed, "shared")) * np.sign(draw(seed, name))


CONTROLS: list[tuple[str, Kind, Defect]] = [
    *(("mean", kind, shifted) for kind in KINDS),
    *(("variance", kind, widened) for kind in KINDS),
    ("skewness", "gaussian", skewed),
    ("skewness", "binomial", skewed),
    ("skewness", "uniform", skewed),
    ("skewness", "rademacher", shifted),
    *(("kurtosis", kind, mixed_scales) for kind in KINDS),
    ("cells", "gaussian", coarse),
    ("cells", "binomial", even_counts),
    ("cells", "rademacher", parity),
    ("cells", "uniform", skewed),
    *(("positions", kind, stuck_place) for kind in KINDS),
    ("Kolmogorov-Smirnov", "gaussian", coarse),
    ("Kolmogorov-Smirnov", "uniform", coarse),
    ("low bits", "uniform", coarse),
    *((f"lag {lag}", kind, repeated(lag)) for lag in LAGS for kind in KINDS),
    *((label, kind, shared_between_seeds) for label in OTHER_SEEDS for kind in KINDS),
    *((label, kind, shared_between_names) for label in NAMES for kind in KINDS),
    *((f"magnitude, lag {lag}", "gaussian", repeated(lag, signs=True)) for lag in LAGS),
    *((f"magnitude, {label}", "binomial", magnitudes_shared_between_seeds) for label in OTHER_SEEDS),
    *((f"magnitude, {label}", "gaussian", magnitudes_shared_between_names) for label in NAMES),
]
EXAMINED = {
    "binomial": "6d466c181e0fe646c03f145428151da4662d17790402fcea03aeb1984bcc81a4",
    "rademacher": "4ba1084074ecc3d0f762c8def9e470970b684a5d7a0f66346b4e1542b58c270c",
    "uniform": "a01fe6ea5857f6ae7b3fe8b502d0c03cd607a72beea68bad4b3a512179be6da6",
}
"""SHA-256 of what was last examined. Gaussians are made of the same words, which ``tests/unit/test_noise.py`` follows to the normals."""


@pytest.mark.parametrize("kind", EXAMINED)
def test_the_noise_is_what_was_examined(kind: Kind) -> None:
    """The fast tier examines nothing else: noise is a pure function, so what passed once passes for ever.

    If this fails, change ``noise.ALGORITHM``, run ``make test-full``, and write down the new sums here.
    """
    found = hashlib.sha256(noise.ALGORITHM.encode())
    for seed in SEEDS:
        for name in (NAME, *NAMES.values()):
            found.update(drawn(kind, 2**14, seed, name).astype("<f8").tobytes())
    assert found.hexdigest() == EXAMINED[kind]


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "seed", "check"),
    [(kind, seed, check) for kind in KINDS for seed in SEEDS for check in CHECKS if applies(check, kind)],
)
def test_the_noise_passes(check: str, kind: Kind, seed: int) -> None:
    assert CHECKS[check](stream(kind), kind, seed) >= ALPHA


@pytest.mark.full
@pytest.mark.parametrize(("check", "kind", "defect"), CONTROLS)
def test_broken_noise_is_rejected(check: str, kind: Kind, defect: Defect) -> None:
    broken: Draw = lru_cache(maxsize=2)(partial(defect, stream(kind)))
    assert CHECKS[check](broken, kind, SEEDS[1]) < ALPHA


def test_every_check_has_a_negative_control() -> None:
    assert {check for check, _, _ in CONTROLS} == set(CHECKS)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", ["mean", "variance", "cells", "positions", "lag 1", "seed + 1"])
def test_error_rates_are_as_stated(check: str, kind: Kind) -> None:
    """p-values of 150 seeds are uniform, itself tested at ALPHA; those of a constant statistic are all 1."""
    draw = stream(kind, 2**15)
    p_values = np.array([CHECKS[check](draw, kind, noise.derive_seed("calibration", i)) for i in range(150)])
    if kind == "rademacher" and check == "variance":
        assert (p_values == 1).all()
    else:
        assert stats.kstest(p_values, "uniform").pvalue >= ALPHA


def test_exact_moments() -> None:
    assert [exact_moment("binomial", order) for order in range(5)] == [1, 0, 1, 0, Fraction(23, 8)]
    assert [exact_moment("gaussian", order) for order in (2, 4, 6, 8)] == [1, 3, 15, 105]
    assert [exact_moment("uniform", order) for order in (2, 4)] == [1, Fraction(9, 5)]
    assert [exact_moment("rademacher", order) for order in range(5)] == [1, 0, 1, 0, 1]


def rounding_p_value(z: F64, uniform: F64, kind: Distribution) -> float:
    """The smaller of two p-values, doubled (Bonferroni): rounding against ``z`` and against its magnitude."""
    p_values = [p_of_correlation(z, uniform)]
    if kind != "rademacher":
        p_values.append(p_of_correlation(magnitude(z, kind), uniform))
    return min(1.0, len(p_values) * min(p_values))


@pytest.mark.full
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_rounding_is_independent_of_the_noise_it_rounds(seed: int, kind: Distribution) -> None:
    assert rounding_p_value(drawn(kind, COUNT, seed, NAME), drawn("uniform", COUNT, seed, NAME), kind) >= ALPHA


@pytest.mark.full
def test_rounding_from_the_words_of_the_noise_would_be_rejected() -> None:
    words = noise.philox(SEEDS[1], noise.name_key(NAME), np.arange(COUNT // 4, dtype=np.uint64))
    reused = (np.stack(words, axis=-1).reshape(-1).astype(np.float64) / 2**32 - 0.5) * math.sqrt(12)
    assert rounding_p_value(drawn("gaussian", COUNT, SEEDS[1], NAME), reused, "gaussian") < ALPHA
