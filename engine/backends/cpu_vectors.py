"""Elementwise mathematics as LLVM IR: exp, the activations, softmax rows, activation quantization.

exp is Cephes' expf (degree-5 polynomial after reduction by ln 2, 2 ulp), so vector and portable
code agree. All rows are processed in vectors of 8; `n` must be a multiple of 8.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.backends.cpu_codes import ROWS, VF, VI
from engine.backends.cpu_jit import (
    F32,
    I16,
    I32,
    I64,
    constant,
    load,
    multiply_add,
    pointer,
    splat,
    store,
    vector,
)  # fmt: skip
from engine.backends.cpu_layouts import X_BLOCK, X_INTEGER_SUM, X_SCALE, X_SUM

_EXP_LIMIT = 87.0
_ROUNDER = 12582912.0
_ROUNDER_BITS = 0x4B400000
_EXP_POLYNOMIAL = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5,
)  # fmt: skip
INTEGER_LIMIT = 32767.0


def _number(value: float) -> ir.Constant:
    return constant(VF, value)


def _at_most(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def _at_least(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _round(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The nearest int32, ties to even, for |x| < 2^22."""
    bits = b.bitcast(b.fadd(x, _number(_ROUNDER)), VI)
    return b.sub(bits, constant(VI, _ROUNDER_BITS))


def exp(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x; below −87 zero, above 87 e^87."""
    clipped = _at_most(b, _at_least(b, x, _number(-_EXP_LIMIT)), _number(_EXP_LIMIT))
    power = _round(b, b.fmul(clipped, _number(1.4426950408889634)))
    count = b.sitofp(power, VF)
    rest = multiply_add(b, count, _number(-0.693359375), clipped)
    rest = multiply_add(b, count, _number(2.12194440e-4), rest)
    total = _number(_EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        total = multiply_add(b, total, rest, _number(coefficient))
    value = b.fadd(multiply_add(b, b.fmul(rest, rest), total, rest), _number(1.0))
    scale = b.bitcast(b.shl(b.add(power, constant(VI, 127)), constant(VI, 23)), VF)
    vanishes = b.fcmp_ordered("<", x, _number(-_EXP_LIMIT))
    return b.select(vanishes, _number(0.0), b.fmul(value, scale))


def _sigmoid(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.fdiv(_number(1.0), b.fadd(_number(1.0), exp(b, b.fneg(x))))


def _silu(b: ir.IRBuilder, gate: ir.Value, up: ir.Value) -> ir.Value:
    return b.fmul(b.fmul(gate, _sigmoid(b, gate)), up)


def _clamped_swiglu(b: ir.IRBuilder, gate: ir.Value, up: ir.Value) -> ir.Value:
    seven = _number(7.0)
    g = _at_most(b, gate, seven)
    u = _at_most(b, _at_least(b, up, _number(-7.0)), seven)
    passed = b.fmul(g, _sigmoid(b, b.fmul(g, _number(1.702))))
    return b.fmul(passed, b.fadd(u, _number(1.0)))


def _gelu(b: ir.IRBuilder, x: ir.Value, _: ir.Value) -> ir.Value:
    """0.5·x·(1 + tanh(z)) = x·σ(2z)."""
    cubic = b.fmul(b.fmul(x, x), b.fmul(x, _number(0.044715)))
    z = b.fmul(b.fadd(x, cubic), _number(2 * 0.7978845608028654))
    return b.fmul(x, _sigmoid(b, z))


def _sum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.fadd(x, y)


ELEMENTWISE: tuple[Callable[..., Any], ...] = (_silu, _clamped_swiglu, _gelu, _sum)
SILU, CLAMPED_SWIGLU, GELU, ADD = range(4)


@intrinsic(prefer_literal=True)
def elementwise(typing: Any, kind, x, y, out, n):  # type: ignore[no-untyped-def]
    """out[i] = f(x[i], y[i]) for i < n, float32 rows at addresses; f is ELEMENTWISE[kind]."""
    function = ELEMENTWISE[kind.literal_value]

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _, left, right, target, count = arguments
        with cgutils.for_range(b, b.udiv(count, I64(ROWS))) as loop:
            at = b.mul(loop.index, I64(4 * ROWS))
            store(b, function(b, load(b, left, at, VF), load(b, right, at, VF)), target, at)
        return context.get_dummy_value()

    address = types.uintp
    return types.void(kind, address, address, address, types.intp), generate


def _reduce(b: ir.IRBuilder, values: ir.Value, join: Callable[..., Any]) -> ir.Value:
    lanes = [b.extract_element(values, I32(lane)) for lane in range(values.type.count)]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [join(b, lanes[i], lanes[i + half]) for i in range(half)]
    return lanes[0]


@intrinsic
def row_maximum(typing: Any, row, n):  # type: ignore[no-untyped-def]
    """The largest of n float32 numbers."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        slot = cgutils.alloca_once_value(b, _number(float("-inf")))
        with cgutils.for_range(b, b.udiv(arguments[1], I64(ROWS))) as loop:
            here = load(b, arguments[0], b.mul(loop.index, I64(4 * ROWS)), VF)
            b.store(_at_least(b, here, b.load(slot)), slot)
        return _reduce(b, b.load(slot), _at_least)

    return types.float32(types.uintp, types.intp), generate


@intrinsic
def row_exponentials(typing: Any, row, n, scale, maximum):  # type: ignore[no-untyped-def]
    """row[i] = exp(row[i]·scale − maximum); returns their sum."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        base, count, scale, maximum = arguments
        factor, shift = splat(b, scale, ROWS), splat(b, maximum, ROWS)
        slot = cgutils.alloca_once_value(b, _number(0.0))
        with cgutils.for_range(b, b.udiv(count, I64(ROWS))) as loop:
            at = b.mul(loop.index, I64(4 * ROWS))
            value = exp(b, b.fsub(b.fmul(load(b, base, at, VF), factor), shift))
            store(b, value, base, at)
            b.store(b.fadd(b.load(slot), value), slot)
        return _reduce(b, b.load(slot), _sum)

    number = types.float32
    return number(types.uintp, types.intp, number, number), generate


@intrinsic
def row_squares(typing: Any, row, n, mean):  # type: ignore[no-untyped-def]
    """Σ (row[i] − mean)²."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        shift = splat(b, arguments[2], ROWS)
        slot = cgutils.alloca_once_value(b, _number(0.0))
        with cgutils.for_range(b, b.udiv(arguments[1], I64(ROWS))) as loop:
            here = load(b, arguments[0], b.mul(loop.index, I64(4 * ROWS)), VF)
            away = b.fsub(here, shift)
            b.store(multiply_add(b, away, away, b.load(slot)), slot)
        return _reduce(b, b.load(slot), _sum)

    return types.float32(types.uintp, types.intp, types.float32), generate


def _magnitude(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.bitcast(b.and_(b.bitcast(x, VI), constant(VI, 0x7FFFFFFF)), VF)


def _largest_magnitude(b: ir.IRBuilder, values: list[ir.Value]) -> ir.Value:
    largest = _magnitude(b, values[0])
    for value in values[1:]:
        largest = _at_least(b, _magnitude(b, value), largest)
    return _reduce(b, largest, _at_least)


@intrinsic
def quantize_block(typing: Any, x, out):  # type: ignore[no-untyped-def]
    """32 float32 numbers as int16 with one scale, in cpu_layouts' activation block."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, out = arguments
        values = [load(b, x, 4 * at, VF) for at in range(0, X_BLOCK, ROWS)]
        largest = _largest_magnitude(b, values)
        empty = b.fcmp_ordered("<", largest, F32(1e-30))
        inverse = b.select(empty, F32(0.0), b.fdiv(F32(INTEGER_LIMIT), largest))
        scale = b.select(empty, F32(0.0), b.fmul(largest, F32(1 / INTEGER_LIMIT)))
        total = constant(VI, 0)
        for index, value in enumerate(values):
            code = _round(b, b.fmul(value, splat(b, inverse, ROWS)))
            total = b.add(total, code)
            short = b.trunc(code, vector(I16, ROWS))
            b.store(short, pointer(b, out, 2 * ROWS * index, short.type)).align = 2
        count = _reduce(b, total, lambda b, x, y: b.add(x, y))
        b.store(scale, pointer(b, out, X_SCALE, F32)).align = 4
        x_sum = b.fmul(scale, b.sitofp(count, F32))
        b.store(x_sum, pointer(b, out, X_SUM, F32)).align = 4
        b.store(count, pointer(b, out, X_INTEGER_SUM, I32)).align = 4
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), generate
