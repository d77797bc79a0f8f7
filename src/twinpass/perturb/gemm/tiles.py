"""Products of bfloat16 in tiles, summed in float32: by AMX's instructions, or float32's where there are none.

A tile of rows is ``ROWS`` of them, ``DEPTH`` columns of each; one of weights is ``DEPTH`` of each of 16 outputs, transposed so that two
neighbours of a row, one word, lie beside those of the next output. That is what AMX multiplies (Intel 64 and IA-32 Architectures
Optimization Reference Manual, chapter 20). AVX-512's instruction for bfloat16 was slower than float32's on the same tiles (docs/log.md).

Numba compiles one function for each type of its arguments: the instructions are chosen by the dtype of ``kind``, see :func:`kind_of`.
Why this is llvmlite and not a file in C: see :mod:`twinpass.perturb.gemm.registers`.

AMX has eight registers of 16 lines x 64 bytes; here ::

    0  sums of s, outputs 0-15      2  sums of t, outputs 0-15      4  rows s      6  weights of outputs 0-15: of W, then of Z
    1  sums of s, outputs 16-31     3  sums of t, outputs 16-31     5  rows t      7  weights of outputs 16-31: of W, then of Z
"""

import ctypes
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from twinpass.perturb.gemm.registers import WIDTH, data, features, load, splat, store, transposed

Instructions = Literal["amx", "float32"]

ROWS, COLUMNS, DEPTH = 16, 32, 32
WORDS = ROWS * DEPTH // 2
"""Of a tile: 32 bits, two bfloat16 or a sum."""
SUMS = 4 * WORDS
"""Of a block: by the weights 0-15 and 16-31 of the first kind of row, then of the second."""

_TILE_DATA = 18
_REQUEST = 0x1023
_SYSTEM_CALL = 158

_DTYPES: dict[Instructions, Any] = {"amx": np.uint8, "float32": np.uint32}

_f32, _i8, _i16, _i32, _i64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_floats, _words = ir.VectorType(_f32, 16), ir.VectorType(_i32, 16)


def _granted() -> bool:
    """Ask Linux for AMX's registers, which a process has not from the start."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_SYSTEM_CALL, _REQUEST, _TILE_DATA) == 0)


@cache
def available() -> tuple[Instructions, ...]:
    """What this processor can be asked for; the first is taken."""
    return tuple(_known(features()))


def _known(known: Mapping[str, bool]) -> Iterator[Instructions]:
    if known.get("amx-tile") and known.get("amx-bf16") and _granted():
        yield "amx"
    yield "float32"


def kind_of(instructions: Instructions) -> NDArray[Any]:
    """What tells the functions here apart, by its dtype; for AMX it is how its registers are divided, too."""
    kind = np.zeros(64, _DTYPES[instructions])
    if instructions == "amx":
        kind[0] = 1  # the palette: the one that there is
        kind[16:32:2] = 2 * DEPTH  # bytes of a line, 16 bits for each of the eight registers
        kind[48:56] = ROWS  # lines, of each register
    return kind


def _is(kind: Any, instructions: Instructions) -> bool:
    return bool(kind.dtype == from_dtype(np.dtype(_DTYPES[instructions])))


def _call(builder, name, *arguments):
    function = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.{name}"), arguments)


def _bytes(builder, base, index):
    return builder.bitcast(builder.gep(base, [index]), _i8.as_pointer())


@intrinsic
def begin(typing, kind):
    """Divide AMX's registers; nothing elsewhere."""

    def generate(context, builder, signature, arguments):
        if _is(kind, "amx"):
            _call(builder, "ldtilecfg", _bytes(builder, data(context, builder, kind, arguments[0]), _i64(0)))
        return context.get_dummy_value()

    return types.void(kind), generate


@intrinsic
def end(typing, kind):
    """Let go of AMX's registers; nothing elsewhere."""

    def generate(context, builder, signature, arguments):
        if _is(kind, "amx"):
            _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(kind), generate


@intrinsic
def add(typing, kind, low, at, panel, start, steps, sums, to, fresh):
    """``sums[to:]`` (+)= a block of rows by a panel of weights, both read from ``at`` and ``start`` on.

    A step is two tiles of rows, s and t, and four of the panel, the weights W and the direction Z of 16 outputs, and those of 16 more.
    The sums are ``W s``, and ``W t + Z s``. ``fresh``: from zero on.
    """
    way = _tiles if _is(kind, "amx") else _lines

    def generate(context, builder, signature, arguments):
        _, low, at, panel, start, steps, sums, to, fresh = arguments
        rows = builder.gep(data(context, builder, signature.args[1], low), [at])
        weights = builder.gep(data(context, builder, signature.args[3], panel), [start])
        totals = builder.gep(data(context, builder, signature.args[6], sums), [to])
        way(builder, rows, weights, steps, totals, fresh)
        return context.get_dummy_value()

    i = types.int64
    return types.void(kind, low, i, panel, i, i, sums, i, types.boolean), generate


def _tiles(builder, rows, weights, steps, totals, fresh):
    """By AMX: six products of tiles a step, three for each half of the outputs, from six tiles loaded."""
    line = _i64(4 * ROWS)
    with builder.if_else(fresh) as (new, old):
        with new:
            for which in range(4):
                _call(builder, "tilezero", _i8(which))
        with old:
            for which in range(4):
                _call(builder, "tileloadd64", _i8(which), _bytes(builder, totals, _i64(which * WORDS)), line)
    with cgutils.for_range(builder, steps) as loop:
        own = builder.gep(rows, [builder.mul(loop.index, _i64(2 * WORDS))])
        panel = builder.gep(weights, [builder.mul(loop.index, _i64(4 * WORDS))])
        for tile in range(2):
            _call(builder, "tileloadd64", _i8(4 + tile), _bytes(builder, own, _i64(tile * WORDS)), line)
        # W meets both kinds of row, Z only s. Neighbouring products go to different sums, as each waits for the last one to its own.
        for half in range(2):
            _call(builder, "tileloadd64", _i8(6 + half), _bytes(builder, panel, _i64(half * WORDS)), line)
            _call(builder, "tdpbf16ps", _i8(half), _i8(4), _i8(6 + half))
            _call(builder, "tdpbf16ps", _i8(2 + half), _i8(5), _i8(6 + half))
        for half in range(2):
            _call(builder, "tileloadd64", _i8(6 + half), _bytes(builder, panel, _i64((2 + half) * WORDS)), line)
            _call(builder, "tdpbf16ps", _i8(2 + half), _i8(4), _i8(6 + half))
    for which in range(4):
        _call(builder, "tilestored64", _i8(which), _bytes(builder, totals, _i64(which * WORDS)), line)


AT_ONCE = 4 if WIDTH == 16 else 1
"""Rows whose sums are in registers at the same time, where these are lines and not tiles."""


def _lines(builder, rows, weights, steps, totals, fresh):
    """By vectors of 16 words: for ``AT_ONCE`` rows, four sums each stay in registers; with four of weights and two of a row that is 22 of AVX-512's 32."""
    with cgutils.for_range(builder, _i64(ROWS // AT_ONCE)) as groups:
        own = builder.gep(rows, [builder.mul(groups.index, _i64(AT_ONCE * 16))])
        out = builder.gep(totals, [builder.mul(groups.index, _i64(AT_ONCE * 16))])
        places = [(row, which) for row in range(AT_ONCE) for which in range(4)]
        held = {place: cgutils.alloca_once(builder, _floats) for place in places}
        for row, which in places:
            before = load(builder, out, _i64(which * WORDS + row * 16), _floats)
            none = ir.Constant(_floats, [0.0] * 16)
            builder.store(builder.select(fresh, none, before), held[row, which])
        with cgutils.for_range(builder, steps) as step, cgutils.for_range(builder, _i64(16)) as pair:
            # A word is two neighbouring inputs of a row, or of 16 outputs' weights: the pair that one instruction multiplies and adds.
            first = builder.add(builder.mul(step.index, _i64(2 * WORDS)), pair.index)
            line = builder.add(builder.mul(step.index, _i64(4 * WORDS)), builder.mul(pair.index, _i64(16)))
            panel = [load(builder, weights, builder.add(line, _i64(tile * WORDS)), _words) for tile in range(4)]
            for row in range(AT_ONCE):
                s, t = (
                    splat(builder, builder.load(builder.gep(own, [builder.add(first, _i64(row * 16 + k * WORDS))])), 16)
                    for k in range(2)
                )
                for half in range(2):
                    for which, x, weight in ((half, s, half), (2 + half, t, half), (2 + half, s, 2 + half)):
                        total = held[row, which]
                        builder.store(_multiply_add(builder, builder.load(total), x, panel[weight]), total)
        for row, which in places:
            store(builder, builder.load(held[row, which]), out, _i64(which * WORDS + row * 16))


def _multiply_add(builder, total, x, y):
    function = ir.FunctionType(_floats, [_floats] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, function, "llvm.fma.v16f32")
    for widen in (_upper, _lower):
        wide = [builder.bitcast(widen(builder, word), _floats) for word in (x, y)]
        total = builder.call(multiply_add, [*wide, total])
    return total


def _constant(value):
    return ir.Constant(_words, [value] * 16)


def _lower(builder, word):
    return builder.shl(word, _constant(16))


def _upper(builder, word):
    return builder.and_(word, _constant(0xFFFF0000))


@intrinsic
def emit(typing, sums, at, share, factor, y, to, apart, rows):
    """``y[to + r * apart + n]`` = ``share`` times the first kind of sum plus ``factor`` times the second, r < rows, n < COLUMNS."""

    def generate(context, builder, signature, arguments):
        sums, at, share, factor, y, to, apart, rows = arguments
        totals = builder.gep(data(context, builder, signature.args[0], sums), [at])
        target = builder.gep(data(context, builder, signature.args[4], y), [to])
        function = ir.FunctionType(_floats, [_floats] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, function, "llvm.fma.v16f32")
        share, factor = splat(builder, share, 16), splat(builder, factor, 16)
        with cgutils.for_range(builder, rows) as row:
            line, own = builder.mul(row.index, _i64(16)), builder.mul(row.index, apart)
            for half in range(2):
                first, second = (
                    load(builder, totals, builder.add(line, _i64((kind + half) * WORDS)), _floats) for kind in (0, 2)
                )
                value = builder.call(multiply_add, [factor, second, builder.fmul(share, first)])
                store(builder, value, target, builder.add(own, _i64(half * 16)))
        return context.get_dummy_value()

    i, f = types.int64, types.float32
    return types.void(sums, i, f, f, y, i, i, i), generate


@intrinsic
def form(typing, source, at, stride, panel, to):
    """A tile of weights, ``panel[to:]``, of 16 rows of float32, ``stride`` apart, from ``at`` on: rounded to nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        source, at, stride, panel, to = arguments
        first = builder.gep(data(context, builder, signature.args[0], source), [at])
        target = builder.gep(data(context, builder, signature.args[3], panel), [to])
        # Register n: output n's 32 inputs, rounded, two in each of its 16 words. Transposed, register k has inputs 2k and 2k + 1 of all outputs.
        lines = []
        for row in range(16):
            place = builder.mul(stride, _i64(row))
            parts = [load(builder, first, builder.add(place, _i64(16 * half)), _floats) for half in range(2)]
            even, odd = (
                builder.shuffle_vector(*parts, ir.Constant(_words, [2 * k + lane for k in range(16)]))
                for lane in range(2)
            )
            low = builder.lshr(_rounded(builder, even), _constant(16))
            lines.append(builder.or_(low, _upper(builder, _rounded(builder, odd))))
        for k, line in enumerate(transposed(builder, lines)):
            store(builder, line, target, _i64(k * 16))
        return context.get_dummy_value()

    i = types.int64
    return types.void(source, i, i, panel, i), generate


def _rounded(builder, values):
    """Bits whose upper half is the nearest bfloat16; what is no number is cut off."""
    bits = builder.bitcast(values, _words)
    odd = builder.and_(builder.lshr(bits, _constant(16)), _constant(1))
    near = builder.add(bits, builder.add(odd, _constant(0x7FFF)))
    exponent = builder.and_(bits, _constant(0x7F800000))
    return builder.select(builder.icmp_unsigned("==", exponent, _constant(0x7F800000)), bits, near)
