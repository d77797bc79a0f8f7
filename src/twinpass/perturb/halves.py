"""Two lanes of opposite signs as their sum and their difference, in bfloat16, and back (Numba, CPU).

bfloat16 values are bit patterns in uint16, as everywhere in this package. Rounding is to nearest, ties to even. No
fast-math: the same bits for any number of threads.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from twinpass.perturb.kernels import CHUNK, threads_for

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
def _split(plus, minus, total, difference):
    for c in prange((plus.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(plus.size, (c + 1) * CHUNK)
        a, b, s, d = plus[lo:hi], minus[lo:hi], total[lo:hi], difference[lo:hi]
        for i in range(a.size):
            s[i] = _narrow(a[i] + b[i])
            d[i] = _narrow(a[i] - b[i])


@njit(parallel=True, cache=True)
def _join(total, difference, moved, scale, plus, minus, first):
    columns, factor = total.shape[1], _f(scale)
    for r in prange(total.shape[0]):
        s, d, z = total[r], difference[r], moved[r]
        p, m = plus[r, first : first + columns], minus[r, first : first + columns]
        for i in range(columns):
            middle, half = _wide(s[i]), _wide(d[i]) + factor * _wide(z[i])
            p[i] = _f(0.5) * (middle + half)
            m[i] = _f(0.5) * (middle - half)


def split(plus: NDArray[Any], minus: NDArray[Any], total: NDArray[Any], difference: NDArray[Any]) -> None:
    """``total = plus + minus`` and ``difference = plus - minus``: float32 [n] to bfloat16 [n]."""
    with threads_for(plus.size):
        _split(plus, minus, total, difference)


def join(
    total: NDArray[Any],
    difference: NDArray[Any],
    moved: NDArray[Any],
    scale: float,
    plus: NDArray[Any],
    minus: NDArray[Any],
    first: int,
) -> None:
    """``plus, minus = (total +- (difference + scale * moved)) / 2``, bfloat16 [n, m] to columns from ``first`` on of float32 [n, out]."""
    with threads_for(total.size):
        _join(total, difference, moved, scale, plus, minus, first)
