"""Lanes of opposite signs as their sums and their differences, in bfloat16, and back (Numba, CPU).

bfloat16 values are bit patterns in uint16, as everywhere in this package. Rounding is to nearest, ties to even. No
fast-math: the same bits for any number of threads.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from twinpass.perturb.draw import CODES, draw
from twinpass.perturb.kernels import CHUNK, threads_for
from twinpass.perturb.noise import UNIT, Distribution

_f, _u = np.float32, np.uint32


@njit(inline="always")
def _narrow(x):
    bits = _f(x).view(np.uint32)
    if (bits & _u(0x7F800000)) != _u(0x7F800000):
        bits = _u(bits + _u(0x7FFF) + (_u(bits >> _u(16)) & _u(1)))
    return np.uint16(bits >> _u(16))


@njit(inline="always")
def _wide(x):
    return _u(_u(x) << _u(16)).view(np.float32)


@njit(parallel=True, cache=True)
def _split(x, plus, minus, difference, low):
    rows, width = x.shape[1], x.shape[2]
    for r in prange(plus.size * rows):
        part, row = r // rows, r % rows
        a, s = x[plus[part], row], low[part, row]
        if minus[part] < 0:
            for i in range(width):
                s[i] = _narrow(a[i])
        else:
            b, d = x[minus[part], row], low[difference[part], row]
            for i in range(width):
                s[i] = _narrow(a[i] + b[i])
                d[i] = _narrow(a[i] - b[i])


@njit(parallel=True, cache=True)
def _join(base, moved, shift, scales, plus, minus, difference, y, first):
    rows, columns = base.shape[1], base.shape[2]
    for r in prange(plus.size * rows):
        part, row = r // rows, r % rows
        total, to = base[part, row], y[plus[part], row, first : first + columns]
        shifted, factor = shift[part] >= 0, _f(scales[part])
        z = moved[shift[part], row] if shifted else total
        if minus[part] < 0:
            for i in range(columns):
                to[i] = _wide(total[i])
            if shifted:
                for i in range(columns):
                    to[i] += factor * _wide(z[i])
        else:
            apart, other = base[difference[part], row], y[minus[part], row, first : first + columns]
            if shifted:
                for i in range(columns):
                    middle, half = _wide(total[i]), _wide(apart[i]) + factor * _wide(z[i])
                    to[i] = _f(0.5) * (middle + half)
                    other[i] = _f(0.5) * (middle - half)
            else:
                for i in range(columns):
                    middle, half = _wide(total[i]), _wide(apart[i])
                    to[i] = _f(0.5) * (middle + half)
                    other[i] = _f(0.5) * (middle - half)


@njit(parallel=True, cache=True)
def _round_and_draw(w, low, z, start, code, seed, high):
    for c in prange((w.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(w.size, (c + 1) * CHUNK)
        unit = (start + lo) // UNIT
        units = (start + hi + UNIT - 1) // UNIT - unit
        buffer = np.empty(CHUNK + 2 * UNIT, np.float32)
        draw(buffer, unit, units, code, seed, high)
        part, rounded, drawn, noise = w[lo:hi], low[lo:hi], z[lo:hi], buffer[start + lo - unit * UNIT :]
        for i in range(part.size):
            rounded[i] = _narrow(part[i])
        bits = noise.view(np.uint32)
        for i in range(part.size):
            drawn[i] = np.uint16(_u(bits[i] + _u(0x8000)) >> _u(16))


Places = NDArray[np.int64]


def split(x: NDArray[Any], plus: Places, minus: Places, difference: Places, low: NDArray[Any]) -> None:
    """Round lanes ``x`` [lanes, rows, width], float32, to ``low`` [parts + pairs, rows, width], bfloat16.

    Part ``p`` is the sum of the lanes ``plus[p]`` and ``minus[p]``, whose difference goes to ``difference[p]``; or, where ``minus[p]``
    is negative, the lane ``plus[p]`` itself.
    """
    with threads_for(x.size):
        _split(x, plus, minus, difference, low)


def join(
    base: NDArray[Any],
    moved: NDArray[Any],
    shift: Places,
    scales: NDArray[np.float64],
    plus: Places,
    minus: Places,
    difference: Places,
    y: NDArray[Any],
    first: int,
) -> None:
    """Write lanes to the columns of ``y`` [lanes, rows, out], float32, from ``first`` on.

    ``base`` [parts + pairs, rows, n], bfloat16, is laid out as by :func:`split`. A pair's lanes are ``(sum +- (difference + scale *
    moved)) / 2``, a lane on its own ``base + scale * moved``, with ``moved[shift[p]]`` of ``moved`` [k, rows, n]; nothing is added
    where ``shift[p]`` is negative.
    """
    with threads_for(base.size):
        _join(base, moved, shift, scales, plus, minus, difference, y, first)


def round_and_draw(
    w: NDArray[Any], low: NDArray[Any], z: NDArray[Any], seed: int, key: int, start: int, distribution: Distribution
) -> None:
    """``low`` = ``w``, float32, in bfloat16, and ``z`` as :func:`twinpass.perturb.kernels.fill` draws it: all [n], in one pass."""
    with threads_for(w.size):
        _round_and_draw(w, low, z, start, CODES[distribution], np.uint64(seed), np.uint64(key))
