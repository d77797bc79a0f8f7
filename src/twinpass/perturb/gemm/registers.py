"""The microkernel in float32: ``y [ROWS, COLUMNS] = x [ROWS, depth] panel [depth, COLUMNS]``, written as LLVM's vector instructions.

Numba compiles loops over single numbers and leaves vectors to LLVM, which neither keeps a tile of sums in registers nor transposes in them.
So these few functions are intrinsics: Python that writes LLVM's intermediate code, by llvmlite, into the function that Numba compiles. A
file in C would need a compiler where twinpass is installed, or a binary for each processor; Numba brings llvmlite along, compiles for the
processor that it runs on, and inlines the kernel between drawing noise and multiplying by it.

The tile is the usual one (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008): ``ROWS`` x
``COLUMNS`` sums stay in registers while both operands pass by. In vector registers of ``WIDTH`` float32::

                 registers   sums            weights   a row's number   free, for LLVM to load ahead
    AVX-512      32          8 x 2 = 16      2         1                13
    AVX2         16          4 x 2 = 8       2         1                5
"""

from collections.abc import Mapping

import numpy as np
from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils, config, types
from numba.extending import intrinsic


def features() -> Mapping[str, bool]:
    """What the processor that Numba compiles for has: this one's, or ``NUMBA_CPU_FEATURES`` where it is set (``+avx2,+fma``)."""
    if config.CPU_FEATURES is not None:
        return {name[1:]: name[0] == "+" for name in config.CPU_FEATURES.split(",") if name}
    elsewhere = config.CPU_NAME is not None or not config.ENABLE_AVX
    known: Mapping[str, bool] = {} if elsewhere else binding.get_host_cpu_features()
    return known


def _width() -> int:
    """How many float32 the host has in a register that it multiplies and adds in one instruction; 0: not known to."""
    known = features()
    if known.get("avx512f"):
        return 16
    return 8 if known.get("avx2") and known.get("fma") else 0


WIDTH = _width()
# A step takes ROWS numbers of x and VECTORS registers of the panel for ROWS * VECTORS multiply-adds. More rows would reuse the weights more
# often, but then LLVM spills sums to memory.
ROWS = 8 if WIDTH == 16 else 4
VECTORS = 2
COLUMNS = VECTORS * max(1, WIDTH)
LINE = 16
"""Float32 in a line of the cache."""

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_f32, max(1, WIDTH))


@njit(inline="always")
def aligned(size):
    """``size`` float32 that begin where a line of the cache does: a vector across two lines takes two reads."""
    memory = np.empty(size + LINE, np.float32)
    first = (-(memory.ctypes.data // 4)) % LINE
    return memory[first : first + size]


def data(context, builder, kind, array):
    """Where an array's elements lie."""
    return context.make_array(kind)(context, builder, array).data


def load(builder, base, index, vector=_vector):
    """The vector of elements from ``base[index]`` on."""
    place = builder.gep(base, [index])
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)


def store(builder, value, base, index):
    """Write a vector to the elements from ``base[index]`` on."""
    place = builder.gep(base, [index])
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=4)


def splat(builder, scalar, width=WIDTH):
    """A vector of the same number."""
    nothing = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    first = builder.insert_element(nothing, scalar, _i32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_i32, width), [0] * width))


def _product_of(rows):
    @intrinsic
    def product(typing, x, at, stride, panel, depth, y, to, apart):
        """``y[to + r * apart + n] = sum over k < depth of x[at + r * stride + k] * panel[k * COLUMNS + n]``, r < rows, n < COLUMNS.

        Terms are added one by one, k ascending, each rounded once (FMA).
        """

        def generate(context, builder, signature, arguments):
            x, at, stride, panel, depth, y, to, apart = arguments
            own = builder.gep(data(context, builder, signature.args[0], x), [at])
            panels = data(context, builder, signature.args[3], panel)
            target = builder.gep(data(context, builder, signature.args[5], y), [to])
            fma = ir.FunctionType(_vector, [_vector] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, fma, f"llvm.fma.v{WIDTH}f32")
            lines = [builder.gep(own, [builder.mul(stride, _i64(r))]) for r in range(rows)]
            # Stack slots, one a sum, that LLVM turns into registers, as nobody takes their address.
            sums = [[cgutils.alloca_once(builder, _vector) for _ in range(VECTORS)] for _ in range(rows)]
            for line in sums:
                for total in line:
                    builder.store(ir.Constant(_vector, [0.0] * WIDTH), total)
            with cgutils.for_range(builder, depth) as loop:
                first = builder.mul(loop.index, _i64(COLUMNS))
                # The panel's line k, contiguous, is loaded once for all rows.
                weights = [load(builder, panels, builder.add(first, _i64(h * WIDTH))) for h in range(VECTORS)]
                for line, line_sums in zip(lines, sums, strict=True):
                    # x[r, k] in every element of a register. k is the outer loop, so that each sum gets its terms in the order of k
                    # whatever the tile: a row has the same bits beside any other rows, and on AVX2 as on AVX-512.
                    value = splat(builder, builder.load(builder.gep(line, [loop.index])))
                    for weight, total in zip(weights, line_sums, strict=True):
                        builder.store(builder.call(multiply_add, [value, weight, builder.load(total)]), total)
            for r, line in enumerate(sums):
                for h, total in enumerate(line):
                    place = builder.add(builder.mul(apart, _i64(r)), _i64(h * WIDTH))
                    store(builder, builder.load(total), target, place)
            return context.get_dummy_value()

        i = types.int64
        return types.void(x, i, i, panel, i, y, i, i), generate

    return product


product_of_rows, product_of_row = _product_of(ROWS), _product_of(1)


@intrinsic
def form(typing, w, at, stride, z, first, scale, panel, to):
    """``panel[to + k * COLUMNS + j] = w[at + j * stride + k] + scale * z[first + j * stride + k]``, j and k < WIDTH: transposed in registers.

    Product and sum are rounded one after the other, as wherever else weights are perturbed.
    """

    def generate(context, builder, signature, arguments):
        w, at, stride, z, first, scale, panel, to = arguments
        weights = builder.gep(data(context, builder, signature.args[0], w), [at])
        noise = builder.gep(data(context, builder, signature.args[3], z), [first])
        target = builder.gep(data(context, builder, signature.args[6], panel), [to])
        factor = splat(builder, scale)
        # A square of WIDTH x WIDTH weights, perturbed: register j holds inputs k, k + 1, ... of output j. The product wants, for one input,
        # the weights of neighbouring outputs, so the square is transposed while it is in registers, and stored line by line.
        lines = []
        for j in range(WIDTH):
            place = builder.mul(stride, _i64(j))
            moved = builder.fmul(factor, load(builder, noise, place))
            lines.append(builder.fadd(load(builder, weights, place), moved))
        for k, line in enumerate(transposed(builder, lines)):
            store(builder, line, target, _i64(k * COLUMNS))
        return context.get_dummy_value()

    i = types.int64
    return types.void(w, i, i, z, i, types.float32, panel, i), generate


def transposed(builder, lines):
    """A square of vectors, transposed in log2(width) rounds: in each, the squares of 1, 2, 4, ... on both sides of the diagonal swap."""
    distance, width = 1, len(lines)
    while distance < width:
        from_left, from_right = [], []
        for place in range(width):
            left = not place & distance
            from_left.append(place if left else width + place - distance)
            from_right.append(place + distance if left else width + place)
        # Of lines j and j + distance the even blocks of both make the new line j, the odd ones the new line j + distance.
        masks = [ir.Constant(ir.VectorType(_i32, width), mask) for mask in (from_left, from_right)]
        for j in range(width):
            if not j & distance:
                pair = lines[j], lines[j + distance]
                lines[j], lines[j + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        distance *= 2
    return lines
