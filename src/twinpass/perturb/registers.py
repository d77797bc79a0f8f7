"""What Numba has no words for: vectors of float32 that stay in registers, as LLVM's own instructions.

The product's tile is the usual one (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008):
``ROWS`` times ``COLUMNS`` sums are held in registers while both operands pass by. Few enough sums that LLVM, which loads ahead, spills none.
"""

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def _width() -> int:
    """How many float32 the host has in a register that it multiplies and adds in one instruction; 0: not known to."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 0


WIDTH = _width()
ROWS = 8 if WIDTH == 16 else 4
HALVES = 2
COLUMNS = HALVES * max(1, WIDTH)

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_f32, max(1, WIDTH))


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _load(builder, base, index):
    place = builder.gep(base, [index])
    return builder.load(builder.bitcast(place, _vector.as_pointer()), align=4)


def _store(builder, value, base, index):
    place = builder.gep(base, [index])
    builder.store(value, builder.bitcast(place, _vector.as_pointer()), align=4)


def _splat(builder, scalar):
    nothing = ir.Constant(_vector, ir.Undefined)
    first = builder.insert_element(nothing, scalar, _i32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_i32, WIDTH), [0] * WIDTH))


def _product_of(rows):
    @intrinsic
    def product(typing, x, at, stride, panel, depth, y, to, apart):
        """``y[to + r * apart + n] = sum over k < depth of x[at + r * stride + k] * panel[k * COLUMNS + n]``, r < rows, n < COLUMNS.

        Terms are added one by one, k ascending, each rounded once (FMA).
        """

        def generate(context, builder, signature, arguments):
            x, at, stride, panel, depth, y, to, apart = arguments
            own = builder.gep(_data(context, builder, signature.args[0], x), [at])
            panels = _data(context, builder, signature.args[3], panel)
            target = builder.gep(_data(context, builder, signature.args[5], y), [to])
            fma = ir.FunctionType(_vector, [_vector] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, fma, f"llvm.fma.v{WIDTH}f32")
            lines = [builder.gep(own, [builder.mul(stride, _i64(r))]) for r in range(rows)]
            sums = [[cgutils.alloca_once(builder, _vector) for _ in range(HALVES)] for _ in range(rows)]
            for line in sums:
                for total in line:
                    builder.store(ir.Constant(_vector, [0.0] * WIDTH), total)
            with cgutils.for_range(builder, depth) as loop:
                first = builder.mul(loop.index, _i64(COLUMNS))
                weights = [_load(builder, panels, builder.add(first, _i64(h * WIDTH))) for h in range(HALVES)]
                for line, line_sums in zip(lines, sums, strict=True):
                    value = _splat(builder, builder.load(builder.gep(line, [loop.index])))
                    for weight, total in zip(weights, line_sums, strict=True):
                        builder.store(builder.call(multiply_add, [value, weight, builder.load(total)]), total)
            for r, line in enumerate(sums):
                for h, total in enumerate(line):
                    place = builder.add(builder.mul(apart, _i64(r)), _i64(h * WIDTH))
                    _store(builder, builder.load(total), target, place)
            return context.get_dummy_value()

        i = types.int64
        return types.void(x, i, i, panel, i, y, i, i), generate

    return product


product_of_rows, product_of_row = _product_of(ROWS), _product_of(1)


@intrinsic
def form(typing, w, at, stride, z, first, scale, panel, to):
    """``panel[to + k * COLUMNS + j] = w[at + j * stride + k] + scale * z[first + j * stride + k]``, j and k < WIDTH: turned in registers.

    Product and sum are rounded one after the other, as wherever else weights are perturbed.
    """

    def generate(context, builder, signature, arguments):
        w, at, stride, z, first, scale, panel, to = arguments
        weights = builder.gep(_data(context, builder, signature.args[0], w), [at])
        noise = builder.gep(_data(context, builder, signature.args[3], z), [first])
        target = builder.gep(_data(context, builder, signature.args[6], panel), [to])
        factor = _splat(builder, scale)
        lines = []
        for j in range(WIDTH):
            place = builder.mul(stride, _i64(j))
            moved = builder.fmul(factor, _load(builder, noise, place))
            lines.append(builder.fadd(_load(builder, weights, place), moved))
        for k, line in enumerate(_turned(builder, lines)):
            _store(builder, line, target, _i64(k * COLUMNS))
        return context.get_dummy_value()

    i = types.int64
    return types.void(w, i, i, z, i, types.float32, panel, i), generate


def _turned(builder, lines):
    """A square of vectors, transposed: squares of 1, 2, 4, ... beside the diagonal change places."""
    distance = 1
    while distance < WIDTH:
        from_left, from_right = [], []
        for place in range(WIDTH):
            left = not place & distance
            from_left.append(place if left else WIDTH + place - distance)
            from_right.append(place + distance if left else WIDTH + place)
        masks = [ir.Constant(ir.VectorType(_i32, WIDTH), mask) for mask in (from_left, from_right)]
        for j in range(WIDTH):
            if not j & distance:
                pair = lines[j], lines[j + distance]
                lines[j], lines[j + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        distance *= 2
    return lines
