"""The noise of :mod:`twinpass.perturb.noise`, compiled: one unit of elements after the other into a small buffer.

Numba's cache on disk does not notice a change here: touch ``kernels.py``, which compiles these functions into its own.
"""

import numpy as np
from numba import njit

from twinpass.perturb.noise import UNIT, Distribution

CODES: dict[Distribution, int] = {"gaussian": 0, "binomial": 1, "rademacher": 2}

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_S32 = np.uint64(32)
_f, _u, _i = np.float32, np.uint32, np.int32


@njit(inline="always")
def _philox(seed, high, block):
    c0, c1 = _u(block), _u(block >> _S32)
    c2, c3 = _u(high), _u(high >> _S32)
    k0, k1 = _u(seed), _u(seed >> _S32)
    for _ in range(10):
        p0 = _M0 * np.uint64(c0)
        p1 = _M1 * np.uint64(c2)
        c0, c2 = _u(_u(p1 >> _S32) ^ c1 ^ k0), _u(_u(p0 >> _S32) ^ c3 ^ k1)
        c1, c3 = _u(p1), _u(p0)
        k0, k1 = _u(k0 + _W0), _u(k1 + _W1)
    return c0, c1, c2, c3


@njit(inline="always")
def _popcount(x):
    x = _u(x - (_u(x >> _u(1)) & _u(0x55555555)))
    x = _u(_u(x & _u(0x33333333)) + (_u(x >> _u(2)) & _u(0x33333333)))
    x = _u(_u(x + _u(x >> _u(4))) & _u(0x0F0F0F0F))
    return _i(_u(x * _u(0x01010101)) >> _u(24))


@njit(inline="always")
def _log(x):
    bits = _f(x).view(np.uint32)
    exponent = _i(bits >> _u(23)) - _i(126)
    mantissa = _u((bits & _u(0x007FFFFF)) | _u(0x3F000000)).view(np.float32)
    small = mantissa < _f(0.70710678118654752440)
    e = _f(exponent - _i(small))
    m = mantissa + mantissa - _f(1) if small else mantissa - _f(1)
    y = _f(7.0376836292e-2)
    y = y * m + _f(-1.1514610310e-1)
    y = y * m + _f(1.1676998740e-1)
    y = y * m + _f(-1.2420140846e-1)
    y = y * m + _f(1.4249322787e-1)
    y = y * m + _f(-1.6668057665e-1)
    y = y * m + _f(2.0000714765e-1)
    y = y * m + _f(-2.4999993993e-1)
    y = y * m + _f(3.3333331174e-1)
    z = m * m
    y = y * m * z
    y = y + e * _f(-2.12194440e-4)
    y = y - _f(0.5) * z
    return m + y + e * _f(0.693359375)


@njit(inline="always")
def _box_muller(radius, angle):
    uniform = _f(radius) * _f(2**-32) + _f(2**-33)
    r = np.sqrt(_f(-2) * _log(uniform))
    x = _f(_i(angle & _u(0x3FFFFFFF)) - _i(1 << 29)) * _f(np.pi / 2 * 2**-30)
    t = x * x
    s = ((_f(-1.9515295891e-4) * t + _f(8.3321608736e-3)) * t + _f(-1.6666654611e-1)) * t * x + x
    c = ((_f(2.443315711809948e-5) * t + _f(-1.388731625493765e-3)) * t + _f(4.166664568298827e-2)) * t * t
    c = c - _f(0.5) * t + _f(1)
    quarter = angle >> _u(30)
    swap = (quarter & _u(1)) == _u(1)
    a = s if swap else c
    b = c if swap else s
    a = -a if (quarter == _u(1)) | (quarter == _u(2)) else a
    b = -b if quarter >= _u(2) else b
    return _f(r * a), _f(r * b)


@njit
def draw(buffer, unit, units, code, seed, high):
    """``buffer[:units * UNIT] = z[unit * UNIT : (unit + units) * UNIT]``."""
    if code == 1:
        first = np.uint64(unit) * np.uint64(UNIT // 2)
        for j in range(units * (UNIT // 2)):
            x0, x1, x2, x3 = _philox(seed, high, first + np.uint64(j))
            buffer[2 * j] = _f(_popcount(x0) + _popcount(x1) - _i(32)) * _f(0.25)
            buffer[2 * j + 1] = _f(_popcount(x2) + _popcount(x3) - _i(32)) * _f(0.25)
    elif code == 0:
        first = np.uint64(unit) * np.uint64(UNIT // 4)
        for j in range(units * (UNIT // 4)):
            x0, x1, x2, x3 = _philox(seed, high, first + np.uint64(j))
            buffer[4 * j], buffer[4 * j + 1] = _box_muller(x0, x1)
            buffer[4 * j + 2], buffer[4 * j + 3] = _box_muller(x2, x3)
    else:
        for j in range(units):
            words = _philox(seed, high, np.uint64(unit) + np.uint64(j))
            for w in range(4):
                for b in range(32):
                    sign = (words[w] >> _u(b)) & _u(1)
                    buffer[128 * j + 32 * w + b] = _f(_i(2) * _i(sign) - _i(1))


@njit
def draw_uniform(buffer, unit, units, seed, high):
    """``buffer[:units * UNIT]`` = the rounding stream ``u`` of the same elements, in [0, 1)."""
    first = np.uint64(unit) * np.uint64(UNIT // 4)
    for j in range(units * (UNIT // 4)):
        x0, x1, x2, x3 = _philox(seed, high, first + np.uint64(j))
        buffer[4 * j] = _f(x0 >> _u(8)) * _f(2**-24)
        buffer[4 * j + 1] = _f(x1 >> _u(8)) * _f(2**-24)
        buffer[4 * j + 2] = _f(x2 >> _u(8)) * _f(2**-24)
        buffer[4 * j + 3] = _f(x3 >> _u(8)) * _f(2**-24)
