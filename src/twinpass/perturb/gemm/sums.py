"""Lanes of opposite signs as their sums and their differences, in bfloat16, and back (Numba, CPU).

bfloat16 values are bit patterns in uint16, as everywhere in this package. Rounding is to nearest, ties to even. No
fast-math: the same bits for any number of threads.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from twinpass.perturb.compiled import kernel
from twinpass.perturb.threads import threads_for

LaneIndices = NDArray[np.int64]
"""For each part, the lane (or part) meant, counted from 0, or :data:`NO_LANE`."""

NO_LANE = -1
"""In arrays of a pair's second lane: the first one is on its own."""

_f, _u = np.float32, np.uint32


@njit(inline="always")
def narrow(x):
    """Bits of the nearest bfloat16, ties to even; what is no number is cut off."""
    bits = _f(x).view(np.uint32)
    if (bits & _u(0x7F800000)) != _u(0x7F800000):
        bits = _u(bits + _u(0x7FFF) + (_u(bits >> _u(16)) & _u(1)))
    return np.uint16(bits >> _u(16))


@njit(inline="always")
def _wide(x):
    return _u(_u(x) << _u(16)).view(np.float32)


@kernel(parallel=True)
def _split(x, plus, minus, difference, low):
    rows, width = x.shape[1], x.shape[2]
    for r in prange(plus.size * rows):
        part, row = r // rows, r % rows
        a, s = x[plus[part], row], low[part, row]
        if minus[part] == NO_LANE:
            for i in range(width):
                s[i] = narrow(a[i])
        else:
            b, d = x[minus[part], row], low[difference[part], row]
            for i in range(width):
                s[i] = narrow(a[i] + b[i])
                d[i] = narrow(a[i] - b[i])


@kernel(parallel=True)
def _join(low, plus, minus, difference, y):
    rows, columns = low.shape[1:]
    for r in prange(plus.size * rows):
        part, row = r // rows, r % rows
        total, to = low[part, row], y[plus[part], row]
        if minus[part] == NO_LANE:
            for i in range(columns):
                to[i] = _wide(total[i])
        else:
            apart, other = low[difference[part], row], y[minus[part], row]
            for i in range(columns):
                middle, half = _wide(total[i]), _wide(apart[i])
                to[i] = _f(0.5) * (middle + half)
                other[i] = _f(0.5) * (middle - half)


def split(x: NDArray[Any], plus: LaneIndices, minus: LaneIndices, difference: LaneIndices, low: NDArray[Any]) -> None:
    """Round lanes ``x`` [lanes, rows, width], float32, to ``low`` [parts + pairs, rows, width], bfloat16.

    Part ``p`` is the sum of the lanes ``plus[p]`` and ``minus[p]``, whose difference goes to ``difference[p]``; or, where ``minus[p]``
    is NO_LANE, the lane ``plus[p]`` itself.
    """
    with threads_for(x.size):
        _split(x, plus, minus, difference, low)


def join(low: NDArray[Any], plus: LaneIndices, minus: LaneIndices, difference: LaneIndices, y: NDArray[Any]) -> None:
    """Write lanes to ``y`` [lanes, rows, width], float32, from ``low`` [parts + pairs, rows, width], bfloat16, laid out as by :func:`split`."""
    with threads_for(low.size):
        _join(low, plus, minus, difference, y)
