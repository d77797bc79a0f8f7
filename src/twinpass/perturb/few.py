"""The noise of a few numbers, in plain NumPy: where there are no more, compiling kernels would take longer than a whole run of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinpass.perturb.noise import Distribution, values

FEW = 1024
"""Numbers, of all parameters together; float32 or float64."""


def are_few(w: NDArray[Any]) -> bool:
    """Whether ``w`` [n] is small enough."""
    return w.size <= FEW and w.dtype.kind == "f"


def perturb_each(
    w: NDArray[Any],
    bounds: NDArray[np.int64],
    out: NDArray[Any],
    scales: NDArray[np.float64],
    seed: int,
    keys: NDArray[np.uint64],
    distribution: Distribution,
) -> None:
    """:func:`twinpass.perturb.kernels.perturb_each`, to the same bits."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is passed on
        own = scales.astype(w.dtype)[:, None]
        for key, first, last in zip(keys, bounds[:-1], bounds[1:], strict=True):
            out[:, first:last] = w[first:last] + own * values(seed, int(key), 0, int(last - first), distribution)


def accumulate_each(
    w: NDArray[Any],
    bounds: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    scales: NDArray[np.float64],
    keys: NDArray[np.uint64],
    distribution: Distribution,
) -> None:
    """:func:`twinpass.perturb.kernels.accumulate_each`, to the same bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        for key, first, last in zip(keys, bounds[:-1], bounds[1:], strict=True):
            for seed, scale in zip(seeds, scales.astype(w.dtype), strict=True):
                w[first:last] += scale * values(int(seed), int(key), 0, int(last - first), distribution)
