"""The noise of a few numbers, in plain NumPy: where there are no more, compiling kernels would take longer than a whole run of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinpass.perturb.noise import PER_BLOCK, Distribution, values_of_blocks

FEW = 1024
"""Numbers, of all parameters together; float32 or float64."""

TOGETHER = 64
"""Seeds that are drawn at once."""


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
        out[:] = w + own * _drawn(np.array([seed], np.uint64), bounds, keys, distribution)


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
        own = scales.astype(w.dtype)[:, None]
        for first in range(0, len(seeds), TOGETHER):
            part = slice(first, first + TOGETHER)
            moves = own[part] * _drawn(seeds[part], bounds, keys, distribution)
            w[:] = np.add.accumulate(np.concatenate((w[None], moves)))[-1]


def _drawn(
    seeds: NDArray[np.uint64], bounds: NDArray[np.int64], keys: NDArray[np.uint64], distribution: Distribution
) -> NDArray[np.float32]:
    """``z`` [seeds, n] of all parameters, whose blocks are drawn at once: a call of NumPy takes longer than what it computes here."""
    lengths = np.diff(bounds)
    counts = -(-lengths // PER_BLOCK[distribution])
    blocks = np.concatenate([np.arange(count, dtype=np.uint64) for count in counts])
    of_each = np.repeat(seeds, blocks.size), np.tile(np.repeat(keys, counts), seeds.size), np.tile(blocks, seeds.size)
    whole = values_of_blocks(*of_each, distribution).reshape(seeds.size, -1)
    ends = PER_BLOCK[distribution] * counts
    return whole[:, np.concatenate([np.arange(end) < length for end, length in zip(ends, lengths, strict=True)])]
