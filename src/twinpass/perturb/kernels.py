"""The noise of :mod:`twinpass.perturb.noise` at memory speed, fused with what is done with it (Numba, CPU).

Every kernel works on flat arrays and walks them in chunks: the chunk's noise is drawn into a small buffer that
stays in cache and is consumed at once, so ``z`` never exists as a whole. Weights are float32, float64, or bfloat16
bit patterns in uint16. Nothing here uses fast-math: the results are the same bits for any thread count and split.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray

from twinpass.perturb.noise import F32, UNIT, Distribution

CHUNK = 4096
CODES: dict[Distribution, int] = {"gaussian": 0, "binomial": 1, "rademacher": 2}

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _S32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_f, _u, _i = np.float32, np.uint32, np.int32


@njit(inline="always")
def _philox(seed, high, block):  # type: ignore[no-untyped-def]
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
def _popcount(x):  # type: ignore[no-untyped-def]
    x = _u(x - (_u(x >> _u(1)) & _u(0x55555555)))
    x = _u(_u(x & _u(0x33333333)) + (_u(x >> _u(2)) & _u(0x33333333)))
    x = _u(_u(x + _u(x >> _u(4))) & _u(0x0F0F0F0F))
    return _i(_u(x * _u(0x01010101)) >> _u(24))


@njit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]
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
def _box_muller(radius, angle):  # type: ignore[no-untyped-def]
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
def _draw(buffer, unit, units, code, seed, high):  # type: ignore[no-untyped-def]
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
def _draw_uniform(buffer, unit, units, seed, high):  # type: ignore[no-untyped-def]
    """``buffer[:units * UNIT]`` = the rounding stream ``u`` of the same elements, in [0, 1)."""
    first = np.uint64(unit) * np.uint64(UNIT // 4)
    for j in range(units * (UNIT // 4)):
        x0, x1, x2, x3 = _philox(seed, high, first + np.uint64(j))
        buffer[4 * j] = _f(x0 >> _u(8)) * _f(2**-24)
        buffer[4 * j + 1] = _f(x1 >> _u(8)) * _f(2**-24)
        buffer[4 * j + 2] = _f(x2 >> _u(8)) * _f(2**-24)
        buffer[4 * j + 3] = _f(x3 >> _u(8)) * _f(2**-24)


def _load(w, i):  # type: ignore[no-untyped-def]
    """Element ``i`` as a number: bfloat16 bits widen to float32."""
    raise RuntimeError("for compiled code only")


def _store(w, i, x, u):  # type: ignore[no-untyped-def]
    """Write ``x``; into bfloat16 it rounds up with the probability of its distance (``u`` uniform in [0, 1))."""
    raise RuntimeError("for compiled code only")


@overload(_load, inline="always")
def _load_overload(w, i):  # type: ignore[no-untyped-def]
    if w.dtype == types.uint16:
        return lambda w, i: _u(_u(w[i]) << _u(16)).view(np.float32)
    return lambda w, i: w[i]


@overload(_store, inline="always")
def _store_overload(w, i, x, u):  # type: ignore[no-untyped-def]
    if w.dtype == types.uint16:

        def store_bfloat16(w, i, x, u):  # type: ignore[no-untyped-def]
            bits = _f(x).view(np.uint32)
            if (bits & _u(0x7F800000)) != _u(0x7F800000):
                bits = _u(bits + _u(u * _f(65536)))
            w[i] = np.uint16(bits >> _u(16))

        return store_bfloat16

    def store(w, i, x, u):  # type: ignore[no-untyped-def]
        w[i] = x

    return store


def _cast(w, x):  # type: ignore[no-untyped-def]
    """A scalar in the precision that elements of ``w`` are computed in."""
    raise RuntimeError("for compiled code only")


@overload(_cast, inline="always")
def _cast_overload(w, x):  # type: ignore[no-untyped-def]
    if w.dtype == types.float64:
        return lambda w, x: np.float64(x)
    return lambda w, x: np.float32(x)


@njit(parallel=True, cache=True)
def _fill(out, start, code, seed, high):  # type: ignore[no-untyped-def]
    for c in prange((out.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(out.size, (c + 1) * CHUNK)
        unit = (start + lo) // UNIT
        units = (start + hi + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK + 2 * UNIT, np.float32)
        _draw(z, unit, units, code, seed, high)
        offset = start + lo - unit * UNIT
        for i in range(hi - lo):
            out[lo + i] = z[offset + i]


@njit(parallel=True, cache=True)
def _perturb(w, out, scales, start, code, seed, high):  # type: ignore[no-untyped-def]
    for c in prange((w.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(w.size, (c + 1) * CHUNK)
        unit = (start + lo) // UNIT
        units = (start + hi + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK + 2 * UNIT, np.float32)
        _draw(z, unit, units, code, seed, high)
        offset = start + lo - unit * UNIT
        for lane in range(out.shape[0]):
            row = out[lane]
            scale = _cast(w, scales[lane])
            for i in range(hi - lo):
                _store(row, lo + i, _load(w, lo + i) + scale * z[offset + i], _f(0.5))


@njit(parallel=True, cache=True)
def _gather(w, rows, out, scale, code, seed, high):  # type: ignore[no-untyped-def]
    width = w.shape[1]
    factor = _cast(w, scale)
    for r in prange(rows.size):
        start = rows[r] * width
        unit = start // UNIT
        units = (start + width + UNIT - 1) // UNIT - unit
        z = np.empty(width + 2 * UNIT, np.float32)
        _draw(z, unit, units, code, seed, high)
        offset = start - unit * UNIT
        source, target = w[rows[r]], out[r]
        for i in range(width):
            _store(target, i, _load(source, i) + factor * z[offset + i], _f(0.5))


@njit(parallel=True, cache=True)
def _accumulate(w, seeds, scales, code, high, rounding):  # type: ignore[no-untyped-def]
    for c in prange((w.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(w.size, (c + 1) * CHUNK)
        unit = lo // UNIT
        units = (hi + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK, np.float32)
        u = np.empty(CHUNK, np.float32)
        for t in range(seeds.size):
            _draw(z, unit, units, code, seeds[t], high)
            if w.itemsize == 2:
                _draw_uniform(u, unit, units, seeds[t], rounding)
            scale = _cast(w, scales[t])
            for i in range(hi - lo):
                _store(w, lo + i, _load(w, lo + i) + scale * z[i], u[i])


@njit(parallel=True, cache=True)
def _lattice(w, seeds, exact, update, times, code, high, rounding, quantum, limit):  # type: ignore[no-untyped-def]
    overflow = np.int64(0)
    for c in prange((w.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(w.size, (c + 1) * CHUNK)
        unit = lo // UNIT
        units = (hi + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK, np.float32)
        u = np.empty(CHUNK, np.float32)
        total = np.zeros(CHUNK, np.int64)
        for t in range(seeds.size):
            _draw(z, unit, units, code, seeds[t], high)
            whole = np.int64(exact[t])
            if whole != 0:
                for i in range(hi - lo):
                    total[i] += whole * np.int64(_f(4) * z[i])
            if update[t] != 0.0:
                _draw_uniform(u, unit, units, seeds[t], rounding)
                for i in range(hi - lo):
                    total[i] += times[t] * np.int64(np.floor(update[t] * np.float64(z[i]) + np.float64(u[i])))
        bad = np.int64(0)
        for i in range(hi - lo):
            value = np.int64(np.rint(np.float64(w[lo + i]) / quantum)) + total[i]
            bad += np.int64(value > limit) + np.int64(value < -limit)
            w[lo + i] = np.float64(value) * quantum
        overflow += bad
    return overflow


SERIAL = 1 << 15
"""Below this many elements waking a second thread costs more than it gives."""


@contextmanager
def _threads(elements: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(1 if elements < SERIAL else before)
    try:
        yield
    finally:
        set_num_threads(before)


def fill(out: F32, seed: int, key: int, start: int, distribution: Distribution) -> None:
    """``out[:] = z[start : start + out.size]`` of the parameter whose :func:`name_key` is ``key``."""
    with _threads(out.size):
        _fill(out, start, CODES[distribution], np.uint64(seed), np.uint64(key))


def perturb(
    w: NDArray[Any],
    out: NDArray[Any],
    scales: NDArray[np.float64],
    seed: int,
    key: int,
    start: int,
    distribution: Distribution,
) -> None:
    """``out[l] = w + scales[l] * z[start : start + w.size]``: one read and one draw for all lanes of a probe.

    ``w`` has shape [n], ``out`` [lanes, n] of the same dtype; bfloat16 rounds to nearest (ties away from zero).
    """
    with _threads(out.size):
        _perturb(w, out, scales, start, CODES[distribution], np.uint64(seed), np.uint64(key))


def gather(
    w: NDArray[Any],
    rows: NDArray[np.int64],
    out: NDArray[Any],
    scale: float,
    seed: int,
    key: int,
    distribution: Distribution,
) -> None:
    """``out[r] = (w + scale * z)[rows[r]]`` for an embedding ``w`` [vocabulary, width]; draws only those rows."""
    with _threads(out.size):
        _gather(w, rows, out, scale, CODES[distribution], np.uint64(seed), np.uint64(key))


def accumulate(
    w: NDArray[Any],
    seeds: NDArray[np.uint64],
    scales: NDArray[np.float64],
    key: int,
    rounding_key: int,
    distribution: Distribution,
) -> None:
    """``w += scales[t] * z(seeds[t])`` term after term in one pass; bfloat16 rounds stochastically, from the seed."""
    with _threads(w.size * seeds.size):
        _accumulate(w, seeds, scales, CODES[distribution], np.uint64(key), np.uint64(rounding_key))


def lattice_add(
    w: NDArray[Any],
    seeds: NDArray[np.uint64],
    exact: NDArray[np.int64],
    update: NDArray[np.float64],
    times: NDArray[np.int64],
    key: int,
    rounding_key: int,
    quantum: float,
    limit: int,
    distribution: Distribution,
) -> int:
    """``w += quantum * sum_t (exact[t] * 4 z_t + times[t] * floor(update[t] * z_t + u_t))``, in place.

    Returns how many weights left the lattice's range of ``limit`` quanta.

    ``z_t`` is a multiple of 1/4, ``u_t`` the rounding stream of the same seed: every sum is a whole number of
    quanta, so the additions commute and are undone by their negatives.
    """
    keys = (CODES[distribution], np.uint64(key), np.uint64(rounding_key))
    with _threads(w.size * seeds.size):
        return int(_lattice(w, seeds, exact, update, times, *keys, quantum, limit))
