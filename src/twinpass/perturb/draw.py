"""The noise of :mod:`twinpass.perturb.noise`, compiled: whole units of elements into a small buffer.

Words first, then the elements made of them, in loops of their own: together Numba does not vectorise them.
"""

import numpy as np
from numba import njit
from numba.extending import intrinsic

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


@intrinsic
def _popcount(context, x):
    """Bits that are set, by LLVM, which has an instruction for vectors of them where the processor does."""
    return x(x), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


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
def _words(first, blocks, seed, high):
    """The words of some Philox blocks, one after another."""
    words = np.empty(4 * blocks, np.uint32)
    for j in range(blocks):
        words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3] = _philox(seed, high, first + np.uint64(j))
    return words


@njit
def draw(buffer, unit, units, code, seed, high):
    """``buffer[:units * UNIT] = z[unit * UNIT : (unit + units) * UNIT]``."""
    if code == 1:
        blocks = UNIT // 8
        halves = _words(np.uint64(unit) * np.uint64(blocks), units * blocks, seed, high).view(np.uint16)
        for i in range(halves.size):
            buffer[i] = _f(_i(_popcount(halves[i])) - _i(8)) * _f(0.5)
    elif code == 0:
        blocks = UNIT // 4
        words = _words(np.uint64(unit) * np.uint64(blocks), units * blocks, seed, high)
        for i in range(words.size // 2):
            buffer[2 * i], buffer[2 * i + 1] = _box_muller(words[2 * i], words[2 * i + 1])
    else:
        words = _words(np.uint64(unit), units, seed, high)
        bits = buffer.view(np.uint32)
        for i in range(words.size):
            word, signs = words[i], bits[32 * i : 32 * i + 32]
            for b in range(32):
                signs[b] = _u(0xBF800000) ^ _u(_u(word >> _u(b)) << _u(31))


@njit
def draw_uniform(buffer, unit, units, seed, high):
    """``buffer[:units * UNIT]`` = the rounding stream ``u`` of the same elements, in [0, 1)."""
    blocks = UNIT // 4
    words = _words(np.uint64(unit) * np.uint64(blocks), units * blocks, seed, high)
    for i in range(words.size):
        buffer[i] = _f(words[i] >> _u(8)) * _f(2**-24)
