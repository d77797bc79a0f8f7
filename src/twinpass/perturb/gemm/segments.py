"""Low-rank terms of rows that come in segments, each by the factors in some slot of a pool: the two products of :mod:`twinpass.perturb.gemm.low_rank`, apart.

This is how a server keeps adapters: segments are as long as requests have rows, adapters have ranks of their own in slots of the same room, modules that
are computed as one (q, k and v) have their factors stacked in slices, and rows without an adapter are left as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from twinpass.perturb.compiled import kernel
from twinpass.perturb.gemm.low_rank import (
    BLOCK,
    RANKS,
    TILE,
    dot,
    dots_of_column,
    dots_of_row,
    dots_of_tile,
    spread,
)
from twinpass.perturb.gemm.registers import WIDTH
from twinpass.perturb.noise import F32
from twinpass.perturb.threads import threads_for


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments cut into ``blocks`` [blocks, 5] that are computed at a time: first row, rows, slot, rank, and the slot of the block that comes next.

    All lie within ``rows``, ``slots`` and ``rank``.
    """

    blocks: NDArray[np.int64]
    rows: int
    slots: int
    rank: int


def parts_of(lengths: Sequence[int], slots: Sequence[int], ranks: Sequence[int]) -> Segments:
    """What is to be computed of segments of so many rows, each by the adapter in its slot; ``ranks`` are by slot, and 0 where no adapter is."""
    blocks, end = list[list[int]](), 0
    for length, slot in zip(lengths, slots, strict=True):
        if ranks[slot]:
            blocks += [
                [first, min(BLOCK, end + length - first), slot, ranks[slot], slot]
                for first in range(end, end + length, BLOCK)
            ]
        end += length
    for one, following in pairwise(blocks):
        one[4] = following[2]
    found = np.array(blocks, np.int64).reshape(-1, 5)
    return Segments(found, end, int(found[:, 2].max(initial=-1)) + 1, int(found[:, 3].max(initial=0)))


def suits_down(inputs: int) -> bool:
    """Whether :func:`down` can take rows of so many numbers: they fill whole registers."""
    return WIDTH > 0 and inputs % WIDTH == 0


def suits_up(offsets: Sequence[int], room: int) -> bool:
    """Whether :func:`up` can take slices that begin and end there, and slots with room for so many ranks: they fill whole registers."""
    return WIDTH > 0 and room % RANKS == 0 and not any(offset % WIDTH for offset in offsets)


def down(x: F32, a: F32, parts: Segments, scales: F32, slices: int, out: F32) -> None:
    """Write ``scale * x A^T`` of each row to the first ``slices * rank`` of its ``out`` [rows, slices * room].

    Args:
        x: [rows, in].
        a: [slots, slices * room, in]; a slot's ``slices * rank`` rows that are in use come first.
        scales: by slot.
    """
    with threads_for(x.size):
        _down(x, a, parts.blocks, scales, slices, out)


def up(thin: F32, b: F32, parts: Segments, offsets: NDArray[np.int64], y: F32) -> None:
    """Add to ``y`` [rows, out], from ``offsets[s]`` to ``offsets[s + 1]``, each row's ``thin[s * rank:(s + 1) * rank] B^T`` of slice s.

    Args:
        thin: [rows, slices * room], as :func:`down` writes it.
        b: [slots, out, room]; of a slot's columns the first ``rank`` are in use.
    """
    with threads_for(y.size):
        _up(thin, b, parts.blocks, offsets, y)


@kernel(parallel=True)
def _down(x: Any, a: Any, blocks: Any, scales: Any, slices: Any, out: Any) -> None:
    inputs, width = x.shape[1], out.shape[1]
    apart = a.strides[0] // 4
    for part in prange(len(blocks)):
        first, count, slot, rank, following = blocks[part]
        own, scale, later = a[slot], scales[slot], (following - slot) * apart
        ranks, tiled = slices * rank, count // TILE * TILE
        whole = ranks // TILE * TILE
        for r in range(0, tiled, TILE):
            of_x, to = (first + r) * inputs, (first + r) * width
            for k in range(0, whole, TILE):
                dots_of_tile(x, of_x, own, k * inputs, inputs, later, scale, out, to + k)
            for k in range(whole, ranks):
                dots_of_column(x, of_x, own, k * inputs, inputs, later, scale, out, to + k)
        for r in range(tiled, count):
            of_x, to = (first + r) * inputs, (first + r) * width
            for k in range(0, whole, TILE):
                dots_of_row(x, of_x, own, k * inputs, inputs, later, scale, out, to + k)
            for k in range(whole, ranks):
                dot(x, of_x, own, k * inputs, inputs, later, scale, out, to + k)


@kernel(parallel=True)
def _up(thin: Any, b: Any, blocks: Any, offsets: Any, y: Any) -> None:
    outputs, room = y.shape[1], b.shape[2]
    apart = b.strides[0] // 4
    for part in prange(len(blocks)):
        first, count, slot, rank, following = blocks[part]
        own, later = b[slot], (following - slot) * apart
        padded = (rank + RANKS - 1) // RANKS * RANKS
        rows = np.zeros((count, padded), np.float32)
        for s in range(len(offsets) - 1):
            rows[:, :rank] = thin[first : first + count, s * rank : (s + 1) * rank]
            for o in range(offsets[s], offsets[s + 1], WIDTH):
                for k in range(0, rank, RANKS):
                    to, some = first * outputs + o, min(RANKS, rank - k)
                    spread(rows, k, padded, count, own, o * room + k, room, some, later, y, to, outputs)
