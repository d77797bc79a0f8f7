"""Products of some heads' queries with keys that lie apart, and of their weights with values, written as LLVM's vector instructions.

Heads that share a key's head are taken together, so that a key is read once for all of them: queries, or sums, stay in registers while keys, or values,
pass by. How many heads and registers there are is told by the lengths of two tuples, which are part of a type: Numba compiles a kernel for each.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from twinpass.perturb.gemm.registers import WIDTH, data, load, splat, store

AHEAD = 16
"""Keys are asked of memory so many places before they are multiplied: neighbours in a text lie far from each other, and no processor foresees where."""

REGISTERS = 24 if WIDTH == 16 else 8
"""Queries, or sums, that are held at a time; as many again are free for what passes by."""

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_f32, max(1, WIDTH))
_byte = ir.IntType(8).as_pointer()


def vectors(width: int) -> int:
    """How many registers a head of so many numbers fills; 0: no whole number of them, or the processor has none."""
    return width // WIDTH if WIDTH and width % WIDTH == 0 else 0


def multiply_add(builder, *terms):
    """``a * b + c`` of vectors, rounded once."""
    kind = ir.FunctionType(_vector, [_vector] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32"), terms)


def prefetch(builder, base, index):
    """Ask memory for the line of ``base[index]``, which need not be there."""
    kind = ir.FunctionType(ir.VoidType(), [_byte, _i32, _i32, _i32])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    line = builder.bitcast(builder.gep(base, [index]), _byte)
    builder.call(ask, [line, _i32(0), _i32(3), _i32(1)])


def total_of(builder, vector):
    """The sum of a vector's elements, halves added to each other until one is left."""
    nothing, width = ir.Constant(vector.type, ir.Undefined), WIDTH
    while width > 1:
        width //= 2
        masks = (ir.Constant(ir.VectorType(_i32, width), list(range(at, at + width))) for at in (0, width))
        low, high = (builder.shuffle_vector(vector, nothing, mask) for mask in masks)
        vector = builder.fadd(low, high)
        nothing = ir.Constant(vector.type, ir.Undefined)
    return builder.extract_element(vector, _i32(0))


def _parts(heads, registers):
    """The heads that are taken together, as far as registers go."""
    step = max(1, REGISTERS // registers)
    return [range(first, min(heads, first + step)) for first in range(0, heads, step)]


def _passing(builder, base, slots, index, count, stride, registers):
    """The vectors of what lies in slot ``slots[index]``; one that comes later is asked for."""
    later = builder.add(index, _i64(AHEAD))
    last = builder.sub(count, _i64(1))
    later = builder.select(builder.icmp_signed("<", later, last), later, last)
    place = builder.gep(base, [builder.mul(builder.load(builder.gep(slots, [later])), stride)])
    for n in range(registers):
        prefetch(builder, place, _i64(n * WIDTH))
    place = builder.gep(base, [builder.mul(builder.load(builder.gep(slots, [index])), stride)])
    return [load(builder, place, _i64(n * WIDTH)) for n in range(registers)]


def element(context, builder, kind, array, index):
    """Where an element of an array lies."""
    return builder.gep(data(context, builder, kind, array), [index])


@intrinsic
def dots(typing, q, at, keys, offset, stride, slots, first, count, scale, weights, heads, registers):
    """``weights[h, j] = scale * q_h . keys[offset + slots[first + j] * stride:]``, j < count.

    Head h's query lies at ``q[at + h * width:]``; ``weights`` is contiguous.
    """

    def generate(context, builder, signature, arguments):
        q, at, keys, offset, stride, slots, first, count, scale, weights, _, _ = arguments
        kinds = signature.args
        queries = element(context, builder, kinds[0], q, at)
        base = element(context, builder, kinds[2], keys, offset)
        places = element(context, builder, kinds[5], slots, first)
        target = context.make_array(kinds[9])(context, builder, weights)
        room = builder.extract_value(target.shape, 1)
        for part in _parts(heads.count, registers.count):
            own = [
                [load(builder, queries, _i64((h * registers.count + n) * WIDTH)) for n in range(registers.count)]
                for h in part
            ]
            with cgutils.for_range(builder, count) as loop:
                key = _passing(builder, base, places, loop.index, count, stride, registers.count)
                for h, query in zip(part, own, strict=True):
                    total = builder.fmul(query[0], key[0])
                    for pair in zip(query[1:], key[1:], strict=True):
                        total = multiply_add(builder, *pair, total)
                    place = builder.add(builder.mul(room, _i64(h)), loop.index)
                    builder.store(builder.fmul(total_of(builder, total), scale), builder.gep(target.data, [place]))
        return context.get_dummy_value()

    i = types.int64
    return types.void(q, i, keys, i, i, slots, i, i, types.float32, weights, heads, registers), generate


@intrinsic
def sums(typing, weights, values, offset, stride, slots, first, count, out, at, heads, registers):
    """``out[at + h * width:] = sum over j < count of weights[h, j] * values[offset + slots[first + j] * stride:]``; ``weights`` is contiguous."""

    def generate(context, builder, signature, arguments):
        weights, values, offset, stride, slots, first, count, out, at, _, _ = arguments
        kinds = signature.args
        source = context.make_array(kinds[0])(context, builder, weights)
        room = builder.extract_value(source.shape, 1)
        base = element(context, builder, kinds[1], values, offset)
        places = element(context, builder, kinds[4], slots, first)
        target = element(context, builder, kinds[7], out, at)
        for part in _parts(heads.count, registers.count):
            # Stack slots, one a sum, that LLVM turns into registers, as nobody takes their address.
            totals = [[cgutils.alloca_once(builder, _vector) for _ in range(registers.count)] for _ in part]
            for line in totals:
                for total in line:
                    builder.store(ir.Constant(_vector, [0.0] * WIDTH), total)
            with cgutils.for_range(builder, count) as loop:
                value = _passing(builder, base, places, loop.index, count, stride, registers.count)
                for h, line in zip(part, totals, strict=True):
                    place = builder.add(builder.mul(room, _i64(h)), loop.index)
                    weight = splat(builder, builder.load(builder.gep(source.data, [place])))
                    for own, total in zip(value, line, strict=True):
                        builder.store(multiply_add(builder, weight, own, builder.load(total)), total)
            for h, line in zip(part, totals, strict=True):
                for n, total in enumerate(line):
                    store(builder, builder.load(total), target, _i64((h * registers.count + n) * WIDTH))
        return context.get_dummy_value()

    i = types.int64
    return types.void(weights, values, i, i, slots, i, i, out, i, heads, registers), generate
