"""What one Triton program does: a tile of one row of a shard, its noise in registers, weights read and written once.

Tiles begin where noise units do, not where memory does: each Philox block is then drawn once, and where rows begin
at multiples of 16 elements, as matrices' do, loads and stores are still 16 bytes a thread. Rows that begin elsewhere
cost bandwidth, not correctness. Memory is float32, or int16 for the bits of bfloat16; positions have 64 bits.
"""

from twinpass.perturb.triton_draw import draw, draw_quarters, draw_words, tl, triton


@triton.jit
def _tile(begin, width, part, tile: tl.constexpr):
    """Part ``part`` of a row that begins at logical element ``begin``: its first element, and which ones the row has."""
    base = ((begin >> 7) << 7) + part.to(tl.int64) * tile
    first = tl.maximum(begin - base, 0).to(tl.int32)
    last = tl.minimum(begin + width - base, tile).to(tl.int32)
    place = tl.arange(0, tile)
    return base, (place >= first) & (place < last)


@triton.jit
def _shard_tile(program, start, width, stride, across, tile: tl.constexpr):
    """A program's tile of a shard: first logical element, where that is in memory, which elements are there."""
    row = (program // across).to(tl.int64)
    begin = start + row * stride
    base, inside = _tile(begin, width, program % across, tile)
    return base, row * width + (base - begin), inside


@triton.jit
def _load(pointers, inside):
    """float32 from float32, or from bfloat16's bits in int16."""
    x = tl.load(pointers, mask=inside, other=0)
    if x.dtype == tl.int16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _store(pointers, x, inside):
    """The reverse; bfloat16 cuts off what was not rounded before."""
    if pointers.dtype.element_ty == tl.int16:
        x = (x.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16).to(tl.int16, bitcast=True)
    tl.store(pointers, x, mask=inside)


@triton.jit
def _round(x, push):
    """``x`` to a bfloat16, up where adding ``push`` to the 16 bits to be cut off carries; infinities and NaN stay."""
    bits = x.to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    bits = bits + tl.where(finite, push, tl.zeros_like(push))
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _round_to_nearest(x, memory):
    """``x`` as the memory can hold it, ties away from zero."""
    if memory.dtype.element_ty == tl.int16:
        x = _round(x, tl.full(x.shape, 0x8000, tl.uint32))
    return x


@triton.jit
def _number(pointer):
    """A float64 that travelled as the bits of an int64."""
    return tl.load(pointer).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["across", "seed", "key"])
def fill(
    out, start, width, stride, across, seed: tl.uint64, key: tl.uint64,
    distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    base, memory, inside = _shard_tile(tl.program_id(0), start, width, stride, across, tile)
    tl.store(out + memory + tl.arange(0, tile), draw(base, seed, key, distribution, tile), mask=inside)


@triton.jit(do_not_specialize=["across", "lanes", "seed", "key"])
def perturb(
    w, out, scales, lanes, start, width, stride, across, seed: tl.uint64, key: tl.uint64,
    distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    base, memory, inside = _shard_tile(tl.program_id(0), start, width, stride, across, tile)
    place = tl.arange(0, tile)
    x = _load(w + memory + place, inside)
    z = draw(base, seed, key, distribution, tile)
    for lane in range(lanes):
        moved = x + _number(scales + lane).to(tl.float32) * z
        target = out + tl.cast(lane, tl.int64) * width + memory
        _store(target + place, _round_to_nearest(moved, w), inside)


@triton.jit
def _each_tile(parameters, count, across, tile: tl.constexpr):
    """A program's tile of one of ``count`` parameters that lie back to back: :func:`_shard_tile`, and the parameter's key.

    ``parameters`` [3, count]: where each begins and ends in memory, its key.
    """
    parameter = parameters + tl.program_id(0) // across
    begin, key = tl.load(parameter), tl.load(parameter + 2 * count)
    base, inside = _tile(begin - begin, tl.load(parameter + count) - begin, tl.program_id(0) % across, tile)
    return base, begin + base, inside, key


@triton.jit(do_not_specialize=["across", "count", "total", "lanes", "seed"])
def perturb_each(
    w, out, parameters, count, total, scales, lanes, across, seed: tl.uint64,
    distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    base, memory, inside, key = _each_tile(parameters, count, across, tile)
    place = tl.arange(0, tile)
    x = _load(w + memory + place, inside)
    z = draw(base, seed, key, distribution, tile)
    for lane in range(lanes):
        moved = x + _number(scales + lane).to(tl.float32) * z
        _store(out + tl.cast(lane, tl.int64) * total + memory + place, moved, inside)


@triton.jit(do_not_specialize=["across", "count", "terms"])
def accumulate_each(
    w, parameters, count, seeds, scales, terms, across, distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    base, memory, inside, key = _each_tile(parameters, count, across, tile)
    pointers = w + memory + tl.arange(0, tile)
    x = _load(pointers, inside)
    for t in range(terms):
        x = x + _number(scales + t).to(tl.float32) * draw(base, tl.load(seeds + t), key, distribution, tile)
    _store(pointers, x, inside)


@triton.jit(do_not_specialize=["across", "seed", "key"])
def gather(
    w, rows, out, scale, width, across, seed: tl.uint64, key: tl.uint64,
    distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = program // across
    begin = tl.load(rows + row) * width
    base, inside = _tile(begin, width, program % across, tile)
    place = tl.arange(0, tile)
    moved = _load(w + base + place, inside) + _number(scale).to(tl.float32) * draw(base, seed, key, distribution, tile)
    _store(out + row.to(tl.int64) * width + (base - begin) + place, _round_to_nearest(moved, w), inside)


@triton.jit(do_not_specialize=["terms", "across", "key", "rounding_key"])
def accumulate(
    w, seeds, scales, terms, start, width, stride, across, key: tl.uint64, rounding_key: tl.uint64,
    distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    base, memory, inside = _shard_tile(tl.program_id(0), start, width, stride, across, tile)
    pointers = w + memory + tl.arange(0, tile)
    x = _load(pointers, inside)
    for t in range(terms):
        seed = tl.load(seeds + t)
        x = x + _number(scales + t).to(tl.float32) * draw(base, seed, key, distribution, tile)
        if w.dtype.element_ty == tl.int16:
            x = _round(x, draw_words(base, seed, rounding_key, tile) >> 16)
    _store(pointers, x, inside)


@triton.jit
def _steps(update, quarters, words):
    """``floor(update * z + u)``."""
    u = (words >> 8).to(tl.float64) * 5.9604644775390625e-08  # 2**-24
    return tl.floor(update * (quarters.to(tl.float64) * 0.25) + u).to(tl.int64)


@triton.jit(do_not_specialize=["terms", "across", "key", "rounding_key"])
def lattice(
    w, outside, seeds, exact, update, times, terms, start, width, stride, across, key: tl.uint64, rounding_key: tl.uint64,
    quantum: tl.float64, per_quantum: tl.float64, limit, undo: tl.constexpr, distribution: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    base, memory, inside = _shard_tile(tl.program_id(0), start, width, stride, across, tile)
    pointers = w + memory + tl.arange(0, tile)
    total = tl.zeros((tile,), tl.int64)
    for t in range(terms):
        seed = tl.load(seeds + t)
        quarters = draw_quarters(base, seed, key, distribution, tile)
        total += tl.load(exact + t) * quarters
        scale = _number(update + t)
        if scale != 0:
            total += tl.load(times + t) * _steps(scale, quarters, draw_words(base, seed, rounding_key, tile))
    # Adding and subtracting 1.5 * 2**52 rounds to a whole number.
    units = tl.load(pointers, mask=inside, other=0).to(tl.float64) * per_quantum
    before = (units + 6755399441055744.0 - 6755399441055744.0).to(tl.int64)
    count = outside + tl.program_id(0)
    if undo:
        after = before - total
        bad = tl.load(count)
    else:
        after = before + total
        bad = tl.sum((inside & (tl.abs(after) > limit)).to(tl.int32))
        tl.store(count, bad)
    if bad == 0:
        tl.store(pointers, (after.to(tl.float64) * quantum).to(tl.float32), mask=inside)
