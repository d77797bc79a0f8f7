"""``z`` as a pure function of (seed, parameter name, flat index): the definition, in plain NumPy.

The bits come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"),
a counter-based generator. Its 64-bit key is the probe's seed; its 128-bit counter is the block number (low half)
and a 64-bit hash of the parameter's name (high half), so two parameters or two seeds never share a block.
Any slice can be had in any order, on any number of threads, on any device.

One block of four 32-bit words x0..x3 gives

* ``rademacher``: 128 signs, bit b of the block decides element b (1 is +1);
* ``binomial``: eight values (popcount of 16 bits - 8) / 2, of the lower half of x0, its upper half, and so on: mean 0,
  variance 1, kurtosis 2.875, a multiple of 1/2 and so exact in every float format;
* ``gaussian``: four standard normals by Box-Muller, with logarithm, sine and cosine as float32 polynomials
  (Cephes' coefficients), so that they too are the same bits everywhere.

This module is the reference; :mod:`twinpass.perturb.kernels` computes the same numbers fast.
"""

import hashlib
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Distribution = Literal["gaussian", "binomial", "rademacher"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

ALGORITHM = "philox4x32-10/2"
"""Name and version of the noise; a journal written with another one cannot be replayed."""

UNIT = 128
"""Elements are generated in aligned units of this many: one Philox block of signs, 16 of binomials, 32 of normals."""

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

PER_BLOCK: dict[Distribution, int] = {"gaussian": 4, "binomial": 8, "rademacher": 128}


def name_key(name: str, purpose: str = "z") -> int:
    """64-bit hash of a parameter's name, the high half of the counter. Other purposes give independent streams."""
    digest = hashlib.blake2b(f"{purpose}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a path such as (run seed, "probe", step, k); distinct paths give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def philox(seed: int | U64, high: int | U64, blocks: U64) -> tuple[U32, U32, U32, U32]:
    """Philox4x32-10 of the counters (``blocks`` [n], ``high``) under the key ``seed``, one for all or [n]; four words a block."""
    low32 = np.uint64(0xFFFFFFFF)
    c0 = (blocks & low32).astype(np.uint32)
    c1 = (blocks >> np.uint64(32)).astype(np.uint32)
    c2 = np.full_like(c0, high & 0xFFFFFFFF)
    c3 = np.full_like(c0, high >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0.astype(np.uint64)
        p1 = np.uint64(0xCD9E8D57) * c2.astype(np.uint64)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)).astype(np.uint32) ^ c1 ^ np.uint32(k0),
            (p1 & low32).astype(np.uint32),
            (p0 >> np.uint64(32)).astype(np.uint32) ^ c3 ^ np.uint32(k1),
            (p0 & low32).astype(np.uint32),
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def reference(seed: int, name: str, start: int, stop: int, distribution: Distribution) -> F32:
    """``z[start:stop]`` of a parameter, in float32. Slow and plain; the kernels must return the same bits."""
    return values(seed, name_key(name), start, stop, distribution)


def values(seed: int, key: int, start: int, stop: int, distribution: Distribution) -> F32:
    """The same of the parameter whose :func:`name_key` is ``key``."""
    per_block = PER_BLOCK[distribution]
    first, last = start // per_block, -(-stop // per_block)
    found = values_of_blocks(seed, key, np.arange(first, last, dtype=np.uint64), distribution)
    return found.reshape(-1)[start - first * per_block : stop - first * per_block]


def values_of_blocks(seed: int | U64, key: int | U64, blocks: U64, distribution: Distribution) -> F32:
    """The values [n, a block's] of ``blocks`` [n], each of its own seed and key where there are as many of these."""
    found = {"gaussian": _gaussian, "binomial": _binomial, "rademacher": _rademacher}[distribution]
    return found(*philox(seed, key, blocks))


def uniform_reference(seed: int, name: str, start: int, stop: int) -> F32:
    """``u[start:stop]`` in [0, 1), multiples of 2**-24: the stream that decides stochastic rounding."""
    first, last = start // 4, -(-stop // 4)
    words = philox(seed, name_key(name, "round"), np.arange(first, last, dtype=np.uint64))
    values = (np.stack(words, axis=-1) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return values.reshape(-1)[start - first * 4 : stop - first * 4]


def _rademacher(x0: U32, x1: U32, x2: U32, x3: U32) -> F32:
    bits = (np.stack((x0, x1, x2, x3), axis=-1)[..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return (bits.astype(np.float32) * 2 - 1).reshape(len(x0), 128)


def _binomial(x0: U32, x1: U32, x2: U32, x3: U32) -> F32:
    words = np.stack((x0, x1, x2, x3), axis=-1)
    counts = np.bitwise_count(np.stack((words & np.uint32(0xFFFF), words >> np.uint32(16)), axis=-1)).astype(np.int32)
    return ((counts - 8) * 0.5).astype(np.float32).reshape(len(x0), 8)


def _gaussian(x0: U32, x1: U32, x2: U32, x3: U32) -> F32:
    pairs = (_box_muller(x0, x1), _box_muller(x2, x3))
    return np.stack([value for pair in pairs for value in pair], axis=-1)


def _box_muller(radius: U32, angle: U32) -> tuple[F32, F32]:
    f = np.float32
    uniform = radius.astype(f) * f(2**-32) + f(2**-33)
    r = np.sqrt(f(-2) * _log(uniform))
    # The two top bits name a quarter turn, the other 30 an angle in [-pi/4, pi/4).
    x = ((angle & np.uint32(0x3FFFFFFF)).astype(np.int32) - np.int32(1 << 29)).astype(f) * f(np.pi / 2 * 2**-30)
    t = x * x
    sine = ((f(-1.9515295891e-4) * t + f(8.3321608736e-3)) * t + f(-1.6666654611e-1)) * t * x + x
    cosine = ((f(2.443315711809948e-5) * t + f(-1.388731625493765e-3)) * t + f(4.166664568298827e-2)) * t * t
    cosine = cosine - f(0.5) * t + f(1)
    quarter = angle >> np.uint32(30)
    swap = (quarter & np.uint32(1)).astype(bool)
    a, b = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    a = np.where((quarter == 1) | (quarter == 2), -a, a)
    b = np.where(quarter >= 2, -b, b)
    return (r * a).astype(f), (r * b).astype(f)


def _log(x: F32) -> F32:
    """Natural logarithm of positive normal float32 numbers (Cephes logf), at most 1 ulp off."""
    f = np.float32
    bits = x.view(np.uint32)
    exponent = (bits >> np.uint32(23)).astype(np.int32) - np.int32(126)
    mantissa = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000)).view(f)
    small = mantissa < f(0.70710678118654752440)
    e = (exponent - small.astype(np.int32)).astype(f)
    m = np.where(small, mantissa + mantissa - f(1), mantissa - f(1))
    y = np.full_like(m, f(7.0376836292e-2))
    for c in (
        -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    ):  # fmt: skip
        y = y * m + f(c)
    z = m * m
    y = y * m * z
    y = y + e * f(-2.12194440e-4)
    y = y - f(0.5) * z
    result: F32 = m + y + e * f(0.693359375)
    return result
