"""Checks of a generator, each of which turns 2**20 elements into a two-sided p-value."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from typing import Literal

import numpy as np
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
COUNT = 2**20
KINDS: tuple[Kind, ...] = (*DISTRIBUTIONS, "uniform")
NAME = "model.layers.1.mlp.up_proj.weight"
NAMES = {"next layer": "model.layers.2.mlp.up_proj.weight", "other part": "model.layers.1.mlp.up_proj.bias"}
LAGS = (1, 2, 3, 4, 8, 32, 128)


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
