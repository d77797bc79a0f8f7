"""The noise of :mod:`twinpass.perturb.noise` in Triton: one aligned tile of elements at a time, in registers.

A tile starts at a multiple of ``UNIT`` elements, so each Philox block lies in one tile and all its words are used.
Kernels that draw are launched with ``enable_fp_fusion=False``: the reference rounds every product by itself.
"""

from twinpass.errors import ModelError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ModelError(f"weights on a CUDA device are perturbed by Triton ({error}): pip install triton") from error


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10; a product of 64 bits is one instruction, its two halves by themselves would be two."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _blocks(base, seed, key, per_block: tl.constexpr, tile: tl.constexpr):
    """Four words of each Philox block that elements ``base`` to ``base + tile`` come from."""
    block = base // per_block + tl.arange(0, tile // per_block)
    seed, key = seed.to(tl.uint64), key.to(tl.uint64)
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    return _philox(
        low, high, key.to(tl.uint32), (key >> 32).to(tl.uint32), seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    )


@triton.jit
def _popcounts(x):
    """Bits that are set in the lower and in the upper half of each word, counted in one go."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x & 0x1F).to(tl.int32), ((x >> 16) & 0x1F).to(tl.int32)


@triton.jit
def _log(x):
    bits = x.to(tl.uint32, bitcast=True)
    exponent = (bits >> 23).to(tl.int32) - 126
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = mantissa < 0.70710678118654752440
    e = (exponent - small.to(tl.int32)).to(tl.float32)
    m = tl.where(small, mantissa + mantissa, mantissa) - 1.0
    y = 7.0376836292e-2 * m + -1.1514610310e-1
    y = y * m + 1.1676998740e-1
    y = y * m + -1.2420140846e-1
    y = y * m + 1.4249322787e-1
    y = y * m + -1.6668057665e-1
    y = y * m + 2.0000714765e-1
    y = y * m + -2.4999993993e-1
    y = y * m + 3.3333331174e-1
    z = m * m
    y = y * m * z
    y = y + e * -2.12194440e-4
    y = y - 0.5 * z
    return m + y + e * 0.693359375


@triton.jit
def _flip(x, negative):
    """``-x`` where ``negative`` is 1: by its sign bit, as a negated zero keeps its sign too."""
    return (x.to(tl.uint32, bitcast=True) ^ (negative << 31)).to(tl.float32, bitcast=True)


@triton.jit
def box_muller(radius, angle):
    """Two normals from two words each."""
    uniform = radius.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2**-32, 2**-33
    r = tl.sqrt_rn(-2.0 * _log(uniform))
    x = ((angle & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * 1.4629180792671596e-9  # pi / 2 * 2**-30
    t = x * x
    s = ((-1.9515295891e-4 * t + 8.3321608736e-3) * t + -1.6666654611e-1) * t * x + x
    c = ((2.443315711809948e-5 * t + -1.388731625493765e-3) * t + 4.166664568298827e-2) * t * t
    c = c - 0.5 * t + 1.0
    quarter = angle >> 30
    swap = (quarter & 1) == 1
    a = _flip(tl.where(swap, s, c), (quarter ^ (quarter >> 1)) & 1)
    b = _flip(tl.where(swap, c, s), quarter >> 1)
    return r * a, r * b


@triton.jit
def _four(x0, x1, x2, x3):
    """The elements of four tensors [n] in turns: [n, 4]."""
    return tl.join(tl.join(x0, x2), tl.join(x1, x3)).reshape(x0.shape[0], 4)


@triton.jit
def draw_quarters(base, seed, key, distribution: tl.constexpr, tile: tl.constexpr):
    """``4 * z[base : base + tile]`` in int32, of a distribution that consists of quarters."""
    if distribution == "binomial":
        x0, x1, x2, x3 = _blocks(base, seed, key, 8, tile)
        lower, upper = _popcounts(_four(x0, x1, x2, x3).reshape(tile // 2))
        quarters = tl.interleave(lower, upper) * 2 - 16
    else:
        x0, x1, x2, x3 = _blocks(base, seed, key, 128, tile)
        words = tl.expand_dims(_four(x0, x1, x2, x3), 2)
        bits = (words >> tl.arange(0, 32)[None, None, :].to(tl.uint32)) & 1
        quarters = bits.to(tl.int32).reshape(tile) * 8 - 4
    return quarters


@triton.jit
def draw(base, seed, key, distribution: tl.constexpr, tile: tl.constexpr):
    """``z[base : base + tile]`` in float32; ``base`` is a multiple of ``UNIT``, ``tile`` a power of two from there on."""
    if distribution == "gaussian":
        x0, x1, x2, x3 = _blocks(base, seed, key, 4, tile)
        a, b = box_muller(x0, x1)
        c, d = box_muller(x2, x3)
        z = _four(a, b, c, d).reshape(tile)
    else:
        z = draw_quarters(base, seed, key, distribution, tile).to(tl.float32) * 0.25
    return z


@triton.jit
def draw_words(base, seed, rounding_key, tile: tl.constexpr):
    """The rounding stream of the same elements, as words: ``u`` is the upper 24 bits."""
    x0, x1, x2, x3 = _blocks(base, seed, rounding_key, 4, tile)
    return _four(x0, x1, x2, x3).reshape(tile)
