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
from typing import Literal

import numeric
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from twinpass.perturb import kernels, noise
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

F64 = NDArray[np.float64]
Kind = Distribution | Literal["uniform"]
Draw = Callable[[int, str], F64]
"""A stream's values by seed and parameter name, scaled to mean 0 and variance 1."""
Check = Callable[[Draw, Kind, int], float]
"""The p-value of a generator of a kind, for a seed."""
Defect = Callable[[Draw, int, str], F64]

ALPHA = 1e-6
COUNT = 2**20
KINDS: tuple[Kind, ...] = (*DISTRIBUTIONS, "uniform")
SEEDS = (0, 5775161032549016772, 2**64 - 1)
NAME = "model.layers.1.mlp.up_proj.weight"
NAMES = {"next layer": "model.layers.2.mlp.up_proj.weight", "other part": "model.layers.1.mlp.up_proj.bias"}
LAGS = (1, 2, 3, 4, 8, 32, 128)

one_thread = numeric.one_thread


@lru_cache(maxsize=16)
def drawn(kind: Kind, count: int, seed: int, name: str) -> F64:
    if kind == "uniform":
        values = (noise.uniform_reference(seed, name, 0, count).astype(np.float64) - 0.5) * math.sqrt(12)
    else:
        z = np.empty(count, np.float32)
        kernels.fill(z, seed, noise.name_key(name), 0, kind)
        values = z.astype(np.float64)
    values.flags.writeable = False
    return values


def stream(kind: Kind, count: int = COUNT) -> Draw:
    return partial(drawn, kind, count)


def exact_moment(kind: Kind, order: int) -> Fraction:
    """E[z**order] by the definition of the distribution."""
    if kind == "binomial":
        return sum((math.comb(16, n) * Fraction(n - 8, 2) ** order for n in range(17)), Fraction(0)) / 2**16
    if order % 2:
        return Fraction(0)
    if kind == "gaussian":
        return Fraction(math.prod(range(1, order, 2)))
    return Fraction(3 ** (order // 2), order + 1) if kind == "uniform" else Fraction(1)


def p_of_score(score: float) -> float:
    return math.erfc(abs(score) / math.sqrt(2))


def p_of_chi_square(statistic: float, degrees: int) -> float:
    """Two-sided: a fit that is too good is as suspicious as a bad one."""
    return float(2 * min(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees)))


def p_of_counts(observed: NDArray[np.int64], probabilities: F64) -> float:
    """Chi-square, with the cells expected to hold fewer than 10 pooled into one."""
    expected = probabilities * observed.sum()
    rare = expected < 10
    seen = np.append(observed[~rare], observed[rare].sum()) if rare.any() else observed
    wanted = np.append(expected[~rare], expected[rare].sum()) if rare.any() else expected
    return p_of_chi_square(float(((seen - wanted) ** 2 / wanted).sum()), len(seen) - 1)


def p_of_correlation(x: F64, y: F64) -> float:
    """Of products of independent values with mean 0 and variance 1, whose sum has standard deviation sqrt(n)."""
    return p_of_score(float(x @ y) / math.sqrt(len(x)))


def magnitude(x: F64, kind: Kind) -> F64:
    """``z**2``, scaled to mean 0 and variance 1."""
    return (x * x - 1) / math.sqrt(exact_moment(kind, 4) - 1)


def moment(order: int) -> Check:
    def check(draw: Draw, kind: Kind, seed: int) -> float:
        powers = draw(seed, NAME) ** order
        mean = exact_moment(kind, order)
        variance = exact_moment(kind, 2 * order) - mean**2
        if not variance:
            return float((powers == float(mean)).all())
        return p_of_score(float((powers - float(mean)).sum()) / math.sqrt(len(powers) * variance))

    return check


def cells(draw: Draw, kind: Kind, seed: int) -> float:
    """Counts against the exact probabilities: of every binomial value, of 1024 quantiles, of bytes of signs."""
    x = draw(seed, NAME)
    match kind:
        case "binomial":
            index = (2 * x + 8).astype(np.int64)
            probabilities = np.array([math.comb(16, n) / 2**16 for n in range(17)])
        case "rademacher":
            index = np.packbits(x > 0).astype(np.int64)
            probabilities = np.full(256, 1 / 256)
        case _:
            u: F64 = stats.norm.cdf(x) if kind == "gaussian" else x / math.sqrt(12) + 0.5
            index = np.minimum((u * 1024).astype(np.int64), 1023)
            probabilities = np.full(1024, 1 / 1024)
    return p_of_counts(np.bincount(index, minlength=len(probabilities)), probabilities)


def kolmogorov_smirnov(draw: Draw, kind: Kind, seed: int) -> float:
    x = draw(seed, NAME)
    if kind == "uniform":
        return float(stats.kstest(x / math.sqrt(12) + 0.5, "uniform").pvalue)
    return float(stats.kstest(x, "norm").pvalue)


def low_bits(draw: Draw, kind: Kind, seed: int) -> float:
    """The last 8 of the 24 bits of a uniform."""
    assert kind == "uniform"
    grid = np.rint((draw(seed, NAME) / math.sqrt(12) + 0.5) * 2**24).astype(np.int64)
    return p_of_counts(np.bincount(grid & 255, minlength=256), np.full(256, 1 / 256))


def positions(draw: Draw, kind: Kind, seed: int) -> float:
    """The mean at each of the 128 places of a unit: a stuck bit or a swapped word shows here."""
    rows = draw(seed, NAME).reshape(-1, 128)
    return p_of_chi_square(float((rows.sum(axis=0) ** 2).sum()) / len(rows), 128)


def lagged(lag: int, *, magnitudes: bool = False) -> Check:
    def check(draw: Draw, kind: Kind, seed: int) -> float:
        x = magnitude(draw(seed, NAME), kind) if magnitudes else draw(seed, NAME)
        return p_of_correlation(x[:-lag], x[lag:])

    return check


def against(other_seed: Callable[[int], int], other_name: str, *, magnitudes: bool = False) -> Check:
    def check(draw: Draw, kind: Kind, seed: int) -> float:
        x, y = draw(seed, NAME), draw(other_seed(seed), other_name)
        return p_of_correlation(magnitude(x, kind), magnitude(y, kind)) if magnitudes else p_of_correlation(x, y)

    return check


def same(seed: int) -> int:
    return seed


OTHER_SEEDS: dict[str, Callable[[int], int]] = {
    "seed + 1": lambda seed: (seed + 1) % 2**64,
    "seed + 2**32": lambda seed: (seed + 2**32) % 2**64,
    "seed ^ 2**63": lambda seed: seed ^ 2**63,
}
SHAPES: dict[str, Check] = {
    "mean": moment(1),
    "variance": moment(2),
    "skewness": moment(3),
    "kurtosis": moment(4),
    "cells": cells,
    "positions": positions,
    "Kolmogorov-Smirnov": kolmogorov_smirnov,
    "low bits": low_bits,
}
CORRELATIONS: dict[str, Check] = {
    **{f"lag {lag}": lagged(lag) for lag in LAGS},
    **{label: against(other, NAME) for label, other in OTHER_SEEDS.items()},
    **{label: against(same, name) for label, name in NAMES.items()},
}
MAGNITUDES: dict[str, Check] = {
    **{f"magnitude, lag {lag}": lagged(lag, magnitudes=True) for lag in LAGS},
    **{f"magnitude, {label}": against(other, NAME, magnitudes=True) for label, other in OTHER_SEEDS.items()},
    **{f"magnitude, {label}": against(same, name, magnitudes=True) for label, name in NAMES.items()},
}
CHECKS = SHAPES | CORRELATIONS | MAGNITUDES


def applies(check: str, kind: Kind) -> bool:
    if check == "Kolmogorov-Smirnov":
        return kind in ("gaussian", "uniform")
    return kind == "uniform" if check == "low bits" else kind != "rademacher" or check not in MAGNITUDES


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
