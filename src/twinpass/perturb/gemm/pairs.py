"""Lanes of opposite signs under weights in bfloat16, which exist nowhere as a whole (Numba, CPU).

With x+ and x- what the lanes ``W + e Z`` and ``W - e Z`` read, ``s = x+ + x-`` and ``t = (x+ - x-) / e``::

    y+- = (W s +- e (W t + Z s)) / 2

s, t, W and Z are rounded to bfloat16, to nearest, and products summed in float32. ``e Z t`` is left out: docs/maths/bfloat16.md.
A row's result is the same bits whatever rows are beside it and for any number of threads; processors differ in how they sum.
"""

from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange
from numpy.typing import NDArray

from twinpass.perturb.compiled import kernel
from twinpass.perturb.draw import CODES, draw
from twinpass.perturb.gemm.registers import aligned
from twinpass.perturb.gemm.sums import NO_LANE, LaneIndices, narrow
from twinpass.perturb.gemm.tiles import (
    COLUMNS,
    DEPTH,
    ROWS,
    SUMS,
    WORDS,
    Instructions,
    add,
    available,
    begin,
    emit,
    end,
    form,
    kind_of,
)
from twinpass.perturb.noise import UNIT, Distribution
from twinpass.perturb.threads import threads_for
from twinpass.phases import phase

KC = 9
"""Steps of depth whose weights, 4 KiB each, stay in the nearest cache while rows go by (Goto and van de Geijn's k_c)."""
PANELS, LOWS = 1 << 17, 1 << 15
"""Words of weights, and of rows, that stay in the next cache while one goes by the other."""

_f, _u = np.float32, np.uint32


@kernel(parallel=True)
def _split(x, plus, minus, scales, low):
    parts, blocks, steps = low.shape[:3]
    rows = x.shape[1]
    for block in prange(parts * blocks):
        p, b = block // blocks, block % blocks
        apart = _f(1 / scales[p]) if scales[p] != 0 else _f(0)
        for i in range(ROWS):
            r = b * ROWS + i
            if r >= rows:
                low[p, b, :, :, i] = 0
                continue
            one, other = x[plus[p], r], x[max(minus[p], 0), r]
            for k in range(steps):
                s, t = low[p, b, k, 0, i], low[p, b, k, 1, i]
                u, v = one[k * DEPTH : (k + 1) * DEPTH], other[k * DEPTH : (k + 1) * DEPTH]
                if minus[p] == NO_LANE:
                    t[:] = 0
                    for j in range(u.size):
                        s[j] = narrow(u[j])
                else:
                    for j in range(u.size):
                        s[j] = narrow(u[j] + v[j])
                        t[j] = narrow((u[j] - v[j]) * apart)
                s[u.size :] = 0
                t[u.size :] = 0


@njit(inline="always")
def _form(source, at, width, columns, panel, kind):
    """Tiles of a panel from the ``kind``-th on: of W, or of Z."""
    whole = width // DEPTH
    for half in range(2):
        n = half * 16
        transposed = whole if columns >= n + 16 else 0
        for k in range(transposed):
            form(source, at + n * width + k * DEPTH, width, panel, (4 * k + kind + half) * WORDS)
        for k in range(transposed * DEPTH, (width + DEPTH - 1) // DEPTH * DEPTH, 2):
            to = (4 * (k // DEPTH) + kind + half) * WORDS + k % DEPTH // 2 * 16
            for j in range(16):
                word = _u(0)
                if n + j < columns:
                    place = at + (n + j) * width + k
                    if k < width:
                        word = _u(narrow(source[place]))
                    if k + 1 < width:
                        word = _u(word | _u(_u(narrow(source[place + 1])) << _u(16)))
                panel[to + j] = word


@njit(inline="always")
def _write(sums, at, share, factor, y, to, out, rows, columns, part):
    if columns == COLUMNS:
        emit(sums, at, share, factor, y, to, out, rows)
        return
    emit(sums, at, share, factor, part, 0, COLUMNS, rows)
    for i in range(rows):
        y[to + i * out : to + i * out + columns] = part[i * COLUMNS : i * COLUMNS + columns]


@kernel(parallel=True)
def _multiply(kind, low, w, plus, minus, scales, y, code, seed, high, group, chunk):
    parts, blocks, steps = low.shape[:3]
    rows, out = y.shape[1:]
    width, size = w.size // out, steps * 4 * WORDS
    source, target = low.reshape(-1), y.reshape(-1)
    for g in prange((out + group * COLUMNS - 1) // (group * COLUMNS)):
        start = g * group * COLUMNS
        own = min(group, (out - start + COLUMNS - 1) // COLUMNS)
        panels, sums = aligned(own * size).view(np.uint32), aligned(chunk * SUMS)
        part = np.empty(ROWS * COLUMNS, np.float32)
        for c in range(own):
            n = start + c * COLUMNS
            columns = min(COLUMNS, out - n)
            unit = n * width // UNIT
            units = ((n + columns) * width + UNIT - 1) // UNIT - unit
            z = np.empty(units * UNIT, np.float32)
            draw(z, unit, units, code, seed, high)
            panel = panels[c * size : (c + 1) * size]
            _form(w, n * width, width, columns, panel, 0)
            _form(z, n * width - unit * UNIT, width, columns, panel, 2)
        begin(kind)
        # Loops from outside in: blocks of rows that fit the next cache, panels, steps whose weights fit the nearest, blocks of rows.
        # So weights in the nearest cache meet all rows of a chunk, and rows in the next cache meet all panels of a group.
        for first in range(0, parts * blocks, chunk):
            last = min(parts * blocks, first + chunk)
            for c in range(own):
                for k in range(0, steps, KC):
                    deep, weights = min(KC, steps - k), c * size + k * 4 * WORDS
                    for b in range(first, last):
                        at, to = (b * steps + k) * 2 * WORDS, (b - first) * SUMS
                        add(kind, source, at, panels, weights, deep, sums, to, k == 0)
                n = start + c * COLUMNS
                columns = min(COLUMNS, out - n)
                for b in range(first, last):
                    p, r = b // blocks, b % blocks * ROWS
                    at, count = (b - first) * SUMS, min(ROWS, rows - r)
                    share = _f(1) if minus[p] == NO_LANE else _f(0.5)
                    factor = share * _f(scales[p])
                    _write(sums, at, share, factor, target, (plus[p] * rows + r) * out + n, out, count, columns, part)
                    if minus[p] != NO_LANE:
                        place = (minus[p] * rows + r) * out + n
                        _write(sums, at, share, -factor, target, place, out, count, columns, part)
        end(kind)


def _group(panels: int, limit: int, threads: int) -> int:
    """How many panels at a time, at the most ``limit``, so that each thread comes to as many."""
    turns = max(1, -(-panels // (limit * threads)))
    return max(1, -(-panels // (turns * threads)))


def split(x: NDArray[Any], plus: LaneIndices, minus: LaneIndices, scales: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Lanes ``x`` [lanes, rows, width], float32, as tiles [parts, blocks, steps, 2, 16, 32] of bfloat16: of s and of t, zeros where rows end.

    Part ``p`` is of the lanes ``plus[p]``, at ``scales[p]``, and ``minus[p]``; or, where ``minus[p]`` is negative, of the lane ``plus[p]``
    alone, s, and t is zero.
    """
    rows, width = x.shape[1:]
    low = np.empty((len(plus), -(-rows // ROWS), -(-width // DEPTH), 2, ROWS, DEPTH), np.uint16)
    with threads_for(x.size):
        _split(x, plus, minus, scales, low)
    return low


@phase("product")
def multiply(
    low: NDArray[np.uint16],
    w: NDArray[np.float32],
    plus: LaneIndices,
    minus: LaneIndices,
    scales: NDArray[np.float64],
    y: NDArray[np.float32],
    seed: int,
    key: int,
    distribution: Distribution,
    instructions: Instructions | None = None,
) -> None:
    """Each lane's rows by its own weights, to ``y`` [lanes, rows, out].

    ``low``, ``plus``, ``minus`` and ``scales`` are as :func:`split` takes and returns them, or a run of their parts; ``w`` is the parameter
    [out * in] whose :func:`name_key` is ``key``. A lane on its own is multiplied by ``W + scale Z``. ``instructions``: by default the fastest
    that are :func:`available`.
    """
    with threads_for(w.size):
        steps, panels = low.shape[2], -(-y.shape[2] // COLUMNS)
        group = _group(panels, max(1, PANELS // (steps * 4 * WORDS)), get_num_threads())
        chunk = max(1, LOWS // (steps * 2 * WORDS))
        numbers = (CODES[distribution], np.uint64(seed), np.uint64(key), group, chunk)
        _multiply(kind_of(instructions or available()[0]), low.view(np.uint32), w, plus, minus, scales, y, *numbers)
