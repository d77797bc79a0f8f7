"""A few numbers are perturbed in NumPy, to the bits of the compiled kernels."""

from typing import Any

import numpy as np
import pytest

from twinpass.perturb import few, kernels
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

BOUNDS = np.array([0, 1, 2, 9, 140, 300])
KEYS = np.array([5, 2**63 + 11, 17, 2**40, 3], np.uint64)
SEEDS = np.array([1, 2**62 + 5, 99], np.uint64)
SCALES = np.array([1e-2, -3.7e-3, 0.1])


def weights(dtype: Any) -> Any:
    return np.random.default_rng(1).normal(size=int(BOUNDS[-1])).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_bits_are_those_of_the_kernels(distribution: Distribution, dtype: Any) -> None:
    perturbing: Any = kernels._perturb_each
    accumulating: Any = kernels._accumulate_each
    w, code = weights(dtype), kernels.CODES[distribution]
    assert few.are_few(w)
    own, compiled = (np.full((3, w.size), np.nan, dtype) for _ in range(2))
    kernels.perturb_each(w, BOUNDS, own, SCALES, 2**62 + 3, KEYS, distribution)
    perturbing(w, BOUNDS, compiled, SCALES, code, np.uint64(2**62 + 3), KEYS)
    np.testing.assert_array_equal(own, compiled)
    assert (own != w).mean() > 0.7
    moved, expected = w.copy(), w.copy()
    kernels.accumulate_each(moved, BOUNDS, SEEDS, SCALES, KEYS, distribution)
    accumulating(expected, BOUNDS, SEEDS, SCALES, code, KEYS)
    np.testing.assert_array_equal(moved, expected)


def test_more_seeds_than_are_drawn_at_once_come_one_after_the_other() -> None:
    seeds = np.arange(2 * few.TOGETHER + 3, dtype=np.uint64)
    scales = np.linspace(-1.0, 1.0, seeds.size)
    moved, expected = weights(np.float32), weights(np.float32)
    few.accumulate_each(moved, BOUNDS, seeds, scales, KEYS, "gaussian")
    for seed, scale in zip(seeds, scales, strict=True):
        few.accumulate_each(expected, BOUNDS, np.array([seed]), np.array([scale]), KEYS, "gaussian")
    np.testing.assert_array_equal(moved, expected)


def test_many_numbers_and_halves_are_the_kernels() -> None:
    assert few.are_few(np.zeros(1024, np.float32))
    assert not few.are_few(np.zeros(1025, np.float32))
    assert not few.are_few(np.zeros(3, np.uint16))


def test_every_parameter_has_a_key() -> None:
    w = weights(np.float32)
    with pytest.raises(ValueError, match="broadcast"):
        few.perturb_each(w, BOUNDS, np.empty((3, w.size), np.float32), SCALES, 5, KEYS[:-1], "gaussian")
    with pytest.raises(ValueError, match="broadcast"):
        few.accumulate_each(w, BOUNDS, SEEDS, SCALES, KEYS[:-1], "gaussian")
