"""The noise of :mod:`twinpass.perturb.noise` at memory speed, fused with what is done with it (Numba, CPU).

Every kernel works on flat arrays and walks them in chunks: the chunk's noise is drawn into a small buffer that
stays in cache and is consumed at once, so ``z`` never exists as a whole. A chunk lies within one stretch of a shard. Weights are
float32, float64, or bfloat16 bit patterns in uint16. Nothing here uses fast-math: the results are the same bits for any thread count and split.

Loops run over slices from 0 on: with an offset in the index Numba does not vectorise them, which takes twice as long.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray

from twinpass.perturb import few
from twinpass.perturb.compiled import kernel
from twinpass.perturb.draw import CODES, draw, draw_uniform
from twinpass.perturb.noise import UNIT, Distribution
from twinpass.perturb.shard import Shard
from twinpass.perturb.threads import threads_for
from twinpass.phases import phase

CHUNK = 4096
_f, _u = np.float32, np.uint32


def _load(w, i):
    """Element ``i`` as a number: bfloat16 bits widen to float32."""
    raise RuntimeError("for compiled code only")


def _store(w, i, x, u):
    """Write ``x``; into bfloat16 it rounds up with the probability of its distance (``u`` uniform in [0, 1))."""
    raise RuntimeError("for compiled code only")


@overload(_load, inline="always")
def _load_overload(w, i):
    if w.dtype == types.uint16:
        return lambda w, i: _u(_u(w[i]) << _u(16)).view(np.float32)
    return lambda w, i: w[i]


@overload(_store, inline="always")
def _store_overload(w, i, x, u):
    if w.dtype == types.uint16:

        def store_bfloat16(w, i, x, u):
            bits = _f(x).view(np.uint32)
            if (bits & _u(0x7F800000)) != _u(0x7F800000):
                bits = _u(bits + _u(u * _f(65536)))
            w[i] = np.uint16(bits >> _u(16))

        return store_bfloat16

    def store(w, i, x, u):
        w[i] = x

    return store


def _cast(w, x):
    """A scalar in the precision that elements of ``w`` are computed in."""
    raise RuntimeError("for compiled code only")


@overload(_cast, inline="always")
def _cast_overload(w, x):
    if w.dtype == types.float64:
        return lambda w, x: np.float64(x)
    return lambda w, x: np.float32(x)


@kernel(parallel=True)
def _fill(out, start, code, seed, high):
    for c in prange((out.size + CHUNK - 1) // CHUNK):
        lo, hi = c * CHUNK, min(out.size, (c + 1) * CHUNK)
        unit = (start + lo) // UNIT
        units = (start + hi + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK + 2 * UNIT, np.float32)
        draw(z, unit, units, code, seed, high)
        target, noise = out[lo:hi], z[start + lo - unit * UNIT :]
        for i in range(target.size):
            _store(target, i, noise[i], _f(0.5))


@njit(inline="always")
def _chunks(size, width):
    """How many chunks cover ``size`` elements in stretches of ``width``, none of them across two."""
    return (size // width) * ((width + CHUNK - 1) // CHUNK)


@njit(inline="always")
def _chunk(c, start, width, stride):
    """Chunk ``c`` of a shard: its first element and one past its last in memory, and the first one's index in the parameter."""
    each = (width + CHUNK - 1) // CHUNK
    run, offset = c // each, (c % each) * CHUNK
    return run * width + offset, run * width + min(width, offset + CHUNK), start + run * stride + offset


@kernel(parallel=True)
def _perturb(w, out, scales, code, seed, high, start, width, stride):
    for c in prange(_chunks(w.size, width)):
        lo, hi, at = _chunk(c, start, width, stride)
        unit = at // UNIT
        units = (at + hi - lo + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK + 2 * UNIT, np.float32)
        draw(z, unit, units, code, seed, high)
        part, noise = w[lo:hi], z[at - unit * UNIT :]
        for lane in range(out.shape[0]):
            target, scale = out[lane, lo:hi], _cast(w, scales[lane])
            for i in range(part.size):
                _store(target, i, _load(part, i) + scale * noise[i], _f(0.5))


@kernel(parallel=True)
def _perturb_each(w, bounds, out, scales, code, seed, highs):
    for p in prange(highs.size):
        z = np.empty(CHUNK, np.float32)
        for lo in range(bounds[p], bounds[p + 1], CHUNK):
            hi = min(bounds[p + 1], lo + CHUNK)
            draw(z, (lo - bounds[p]) // UNIT, (hi - lo + UNIT - 1) // UNIT, code, seed, highs[p])
            part = w[lo:hi]
            for lane in range(out.shape[0]):
                target, scale = out[lane, lo:hi], _cast(w, scales[lane])
                for i in range(part.size):
                    _store(target, i, _load(part, i) + scale * z[i], _f(0.5))


@kernel(parallel=True)
def _gather(w, rows, out, scale, code, seed, high):
    width = w.shape[1]
    factor = _cast(w, scale)
    for r in prange(rows.size):
        start = rows[r] * width
        unit = start // UNIT
        units = (start + width + UNIT - 1) // UNIT - unit
        z = np.empty(width + 2 * UNIT, np.float32)
        draw(z, unit, units, code, seed, high)
        source, target, noise = w[rows[r]], out[r], z[start - unit * UNIT :]
        for i in range(width):
            _store(target, i, _load(source, i) + factor * noise[i], _f(0.5))


@kernel(parallel=True)
def _accumulate(w, seeds, scales, code, high, rounding, start, width, stride):
    for c in prange(_chunks(w.size, width)):
        lo, hi, at = _chunk(c, start, width, stride)
        unit = at // UNIT
        units = (at + hi - lo + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK + 2 * UNIT, np.float32)
        u = np.empty(CHUNK + 2 * UNIT, np.float32)
        part, noise, uniform = w[lo:hi], z[at - unit * UNIT :], u[at - unit * UNIT :]
        for t in range(seeds.size):
            draw(z, unit, units, code, seeds[t], high)
            if w.itemsize == 2:
                draw_uniform(u, unit, units, seeds[t], rounding)
            scale = _cast(w, scales[t])
            for i in range(part.size):
                _store(part, i, _load(part, i) + scale * noise[i], uniform[i])


@kernel(parallel=True)
def _accumulate_each(w, bounds, seeds, scales, code, highs):
    for p in prange(highs.size):
        z = np.empty(CHUNK, np.float32)
        for lo in range(bounds[p], bounds[p + 1], CHUNK):
            hi = min(bounds[p + 1], lo + CHUNK)
            part = w[lo:hi]
            for t in range(seeds.size):
                draw(z, (lo - bounds[p]) // UNIT, (hi - lo + UNIT - 1) // UNIT, code, seeds[t], highs[p])
                scale = _cast(w, scales[t])
                for i in range(part.size):
                    part[i] = part[i] + scale * z[i]


@kernel(parallel=True)
def _lattice(w, seeds, exact, update, times, code, high, rounding, quantum, limit, stuck, start, width, stride):
    overflow = np.int64(0)
    for c in prange(stuck.size):
        if stuck[c]:
            continue
        lo, hi, at = _chunk(c, start, width, stride)
        unit = at // UNIT
        units = (at + hi - lo + UNIT - 1) // UNIT - unit
        z = np.empty(CHUNK + 2 * UNIT, np.float32)
        u = np.empty(CHUNK + 2 * UNIT, np.float32)
        noise, uniform = z[at - unit * UNIT :], u[at - unit * UNIT :]
        total = np.zeros(CHUNK, np.int64)
        for t in range(seeds.size):
            draw(z, unit, units, code, seeds[t], high)
            whole = np.int64(exact[t])
            if whole != 0:
                for i in range(hi - lo):
                    total[i] += whole * np.int64(_f(4) * noise[i])
            if update[t] != 0.0:
                draw_uniform(u, unit, units, seeds[t], rounding)
                for i in range(hi - lo):
                    total[i] += times[t] * np.int64(np.floor(update[t] * np.float64(noise[i]) + np.float64(uniform[i])))
        before, bad = w[lo:hi].copy(), np.int64(0)
        for i in range(hi - lo):
            value = np.int64(np.rint(np.float64(w[lo + i]) / quantum)) + total[i]
            bad += np.int64(value > limit) + np.int64(value < -limit)
            w[lo + i] = np.float64(value) * quantum
        if bad > 0:
            w[lo:hi] = before
            stuck[c] = True
        overflow += bad
    return overflow


@phase("noise")
def fill(out: NDArray[Any], seed: int, key: int, start: int, distribution: Distribution) -> None:
    """``out[:] = z[start : start + out.size]`` of the parameter whose :func:`name_key` is ``key``, float32 or bfloat16.

    In bfloat16 ``binomial`` and ``rademacher`` noise is exact, ``gaussian`` is rounded to nearest.
    """
    with threads_for(out.size):
        _fill(out, start, CODES[distribution], np.uint64(seed), np.uint64(key))


@phase("noise")
def perturb(
    w: NDArray[Any],
    out: NDArray[Any],
    scales: NDArray[np.float64],
    seed: int,
    key: int,
    distribution: Distribution,
    shard: Shard,
) -> None:
    """``out[l] = w + scales[l] * z``, ``z`` at the elements of ``shard``: one read and one draw for all lanes of a probe.

    ``w`` has shape [n], ``out`` [lanes, n] of the same dtype; bfloat16 rounds to nearest (ties away from zero).
    """
    with threads_for(out.size):
        _perturb(w, out, scales, CODES[distribution], np.uint64(seed), np.uint64(key), *shard.numbers)


@phase("noise")
def perturb_each(
    w: NDArray[Any],
    bounds: NDArray[np.int64],
    out: NDArray[Any],
    scales: NDArray[np.float64],
    seed: int,
    keys: NDArray[np.uint64],
    distribution: Distribution,
) -> None:
    """:func:`perturb` of many small parameters in one call: ``w[bounds[p] : bounds[p + 1]]`` is the one of ``keys[p]``.

    ``w`` has shape [n], ``out`` [lanes, n].
    """
    if few.are_few(w):
        few.perturb_each(w, bounds, out, scales, seed, keys, distribution)
        return
    with threads_for(out.size):
        _perturb_each(w, bounds, out, scales, CODES[distribution], np.uint64(seed), keys)


@phase("noise")
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
    with threads_for(out.size):
        _gather(w, rows, out, scale, CODES[distribution], np.uint64(seed), np.uint64(key))


def accumulate(
    w: NDArray[Any],
    seeds: NDArray[np.uint64],
    scales: NDArray[np.float64],
    key: int,
    rounding_key: int,
    distribution: Distribution,
    shard: Shard,
) -> None:
    """``w += scales[t] * z(seeds[t])`` term after term in one pass; bfloat16 rounds stochastically, from the seed.

    ``w`` [n] holds the elements of ``shard``.
    """
    keys = np.uint64(key), np.uint64(rounding_key)
    with threads_for(w.size * seeds.size):
        _accumulate(w, seeds, scales, CODES[distribution], *keys, *shard.numbers)


def accumulate_each(
    w: NDArray[Any],
    bounds: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    scales: NDArray[np.float64],
    keys: NDArray[np.uint64],
    distribution: Distribution,
) -> None:
    """:func:`accumulate` of many small float32 or float64 parameters in one call, laid out as for :func:`perturb_each`."""
    if few.are_few(w):
        few.accumulate_each(w, bounds, seeds, scales, keys, distribution)
        return
    with threads_for(w.size * seeds.size):
        _accumulate_each(w, bounds, seeds, scales, CODES[distribution], keys)


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
    shard: Shard,
) -> int:
    """``w += quantum * sum_t (exact[t] * 4 z_t + times[t] * floor(update[t] * z_t + u_t))``, in place.

    Returns how many weights would leave the lattice's range of ``limit`` quanta; unless that is 0, none is moved.

    ``w`` [n] holds the elements of ``shard``. ``z_t`` is a multiple of 1/4, ``u_t`` the rounding stream of the same seed: every sum is a whole number of
    quanta, so the additions commute and are undone by their negatives.
    """
    keys = (CODES[distribution], np.uint64(key), np.uint64(rounding_key))
    stuck = np.zeros(w.size // shard.width * -(-shard.width // CHUNK), np.bool_)  # the chunks that stay where they are
    last = (quantum, limit, stuck, *shard.numbers)
    with threads_for(w.size * seeds.size):
        outside = int(_lattice(w, seeds, exact, update, times, *keys, *last))
        if outside:
            _lattice(w, seeds, -exact, update, -times, *keys, *last)
    return outside
