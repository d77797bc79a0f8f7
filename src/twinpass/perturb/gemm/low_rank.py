"""Low-rank terms of several lanes, ``y += scale * (x A^T) B^T``, each lane's rows by its own factors, in registers.

A lane has few rows and its factors are thin, so that a library's product spends its time on getting ready. Here rows and factors pass by once, and while a
lane's factors do, the next lane's are asked of memory. A row has the same bits beside any other rows: the order of its terms is that of the inputs, and
of the ranks.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from twinpass.perturb.compiled import kernel
from twinpass.perturb.gemm.heads import element, multiply_add, prefetch, total_of
from twinpass.perturb.gemm.registers import WIDTH, load, splat, store, transposed
from twinpass.perturb.noise import F32
from twinpass.perturb.threads import threads_for

RANKS = 8
"""Ranks that are taken together in the second product; there are as many registers for them."""

TILE = 4 if WIDTH == 16 else 2
"""Rows, and ranks, whose sums are held together in the first product."""

BLOCK = 32
"""Rows that a thread takes at a time."""

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_f32, max(1, WIDTH))
_ranks = ir.VectorType(_f32, RANKS)


def suits(inputs: int, outputs: int, rank: int) -> bool:
    """Whether rows, outputs and ranks fill whole registers."""
    return WIDTH > 0 and not (inputs % WIDTH or outputs % WIDTH or rank % RANKS)


def add(x: F32, a: F32, b: F32, y: F32, scale: float) -> None:
    """Add each lane's term to ``y`` [lanes, rows, out]: x [lanes, rows, in], a [lanes, rank, in], b [lanes, out, rank], lanes as far apart as they like."""
    with threads_for(x.size):
        _add(x, a, b, np.float32(scale), y)


@kernel(parallel=True)
def _add(x, a, b, scale, y):
    lanes, rows, inputs = x.shape
    outputs, rank = b.shape[1], b.shape[2]
    blocks = (rows + BLOCK - 1) // BLOCK
    for part in prange(lanes * blocks):
        lane, first = part // blocks, part % blocks * BLOCK
        count = min(BLOCK, rows - first)
        down = np.empty((count, rank), np.float32)
        own_a, own_b = a[lane], b[lane]
        next_a, next_b = (a.strides[0] // 4, b.strides[0] // 4) if first == 0 else (0, 0)
        of_x, of_y = (lane * rows + first) * inputs, (lane * rows + first) * outputs
        tiled = count // TILE * TILE
        for r in range(0, tiled, TILE):
            for k in range(0, rank, TILE):
                dots_of_tile(x, of_x + r * inputs, own_a, k * inputs, inputs, next_a, scale, down, r * rank + k)
        for r in range(tiled, count):
            for k in range(0, rank, TILE):
                dots_of_row(x, of_x + r * inputs, own_a, k * inputs, inputs, next_a, scale, down, r * rank + k)
        for o in range(0, outputs, WIDTH):
            for k in range(0, rank, RANKS):
                spread(down, k, rank, count, own_b, o * rank + k, rank, RANKS, next_b, y, of_y + o, outputs)


def _dots_of(rows, ranks):
    @intrinsic
    def dots(typing, x, of_x, a, of_a, inputs, later, scale, down, to):
        """``down[to + r * width + k] = scale * x[of_x + r * inputs:] . a[of_a + k * inputs:]``, r < rows, k < ranks; ``later`` is how far ahead of a to ask."""

        def generate(context, builder, signature, arguments):
            x, of_x, a, of_a, inputs, later, scale, down, to = arguments
            kinds = signature.args
            xs, factors = element(context, builder, kinds[0], x, of_x), element(context, builder, kinds[2], a, of_a)
            target = context.make_array(kinds[7])(context, builder, down)
            width = builder.extract_value(target.shape, 1)
            lines = [builder.gep(xs, [builder.mul(inputs, _i64(r))]) for r in range(rows)]
            columns = [builder.gep(factors, [builder.mul(inputs, _i64(k))]) for k in range(ranks)]
            totals = [[cgutils.alloca_once(builder, _vector) for _ in columns] for _ in lines]
            for own in totals:
                for total in own:
                    builder.store(ir.Constant(_vector, [0.0] * WIDTH), total)
            with cgutils.for_range(builder, builder.udiv(inputs, _i64(WIDTH))) as loop:
                place = builder.mul(loop.index, _i64(WIDTH))
                weights = [load(builder, column, place) for column in columns]
                for column in columns:
                    prefetch(builder, column, builder.add(place, later))
                for line, own in zip(lines, totals, strict=True):
                    value = load(builder, line, place)
                    for weight, total in zip(weights, own, strict=True):
                        builder.store(multiply_add(builder, value, weight, builder.load(total)), total)
            for r, own in enumerate(totals):
                for k, total in enumerate(own):
                    place = builder.add(to, builder.add(builder.mul(width, _i64(r)), _i64(k)))
                    found = builder.fmul(total_of(builder, builder.load(total)), scale)
                    builder.store(found, builder.gep(target.data, [place]))
            return context.get_dummy_value()

        i = types.int64
        return types.void(x, i, a, i, i, i, types.float32, down, i), generate

    return dots


dots_of_tile, dots_of_row = _dots_of(TILE, TILE), _dots_of(1, TILE)
dots_of_column, dot = _dots_of(TILE, 1), _dots_of(1, 1)


@intrinsic
def spread(typing, down, first, apart, count, b, of_b, rank, some, later, y, to, outputs):
    """``y[to + r * outputs + o] += sum over k < RANKS of down[r * apart + first + k] * b[of_b + o * rank + k]``, r < count, o < WIDTH.

    From k = ``some`` on, numbers of b are taken as 0, whatever they are.
    """

    def generate(context, builder, signature, arguments):
        down, first, apart, count, b, of_b, rank, some, later, y, to, outputs = arguments
        kinds = signature.args
        source, factors = element(context, builder, kinds[0], down, first), element(context, builder, kinds[4], b, of_b)
        target = element(context, builder, kinds[9], y, to)
        numbers = ir.Constant(ir.VectorType(_i64, RANKS), list(range(RANKS)))
        meant = builder.icmp_signed("<", numbers, splat(builder, some, RANKS))
        nothing = ir.Constant(_ranks, [0.0] * RANKS)
        squares = []
        for start in range(0, WIDTH, RANKS):
            places = [builder.mul(rank, _i64(start + o)) for o in range(RANKS)]
            for place in places[::2]:
                prefetch(builder, factors, builder.add(place, later))
            lines = [builder.select(meant, load(builder, factors, place, _ranks), nothing) for place in places]
            squares.append(transposed(builder, lines))
        weights = [_joined(builder, [square[k] for square in squares]) for k in range(RANKS)]
        with cgutils.for_range(builder, count) as loop:
            place = builder.mul(loop.index, outputs)
            own = builder.mul(loop.index, apart)
            total = load(builder, target, place)
            for k, weight in enumerate(weights):
                value = builder.load(builder.gep(source, [builder.add(own, _i64(k))]))
                total = multiply_add(builder, splat(builder, value), weight, total)
            store(builder, total, target, place)
        return context.get_dummy_value()

    i = types.int64
    return types.void(down, i, i, i, b, i, i, i, i, y, i, i), generate


def _joined(builder, parts):
    """Two vectors as one; one as it is."""
    if len(parts) == 1:
        return parts[0]
    mask = ir.Constant(ir.VectorType(_i32, 2 * RANKS), list(range(2 * RANKS)))
    return builder.shuffle_vector(*parts, mask)
