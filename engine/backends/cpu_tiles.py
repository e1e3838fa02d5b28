"""The inner products: 16 rows of a quantized matrix times 1 … 4 activation rows, as LLVM IR.

Integer codes meet int16 activations (32 elements share one float32 scale), two products a lane pair
summed in int32, exactly; each block's sum enters a float32 accumulator, blocks in ascending order.
Arithmetic per activation row is the same for any number of rows, so decode and prefill agree bit
for bit. With AVX2 the pair product is `vpmaddwd`; elsewhere the same integers in portable IR.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.backends.cpu_codes import GROUPS, PAIRS, ROWS, VF, VI, Block, half_to_float
from engine.backends.cpu_jit import (
    F32,
    FEATURES,
    I16,
    I32,
    I64,
    call,
    constant,
    load,
    multiply_add,
    prefetch,
    splat,
    store,
    vector,
)  # fmt: skip
from engine.backends.cpu_layouts import (
    BY_INDEX,
    TILE_ROWS,
    X_BLOCK_BYTES,
    X_INTEGER_SUM,
    X_SCALE,
    X_SUM,
    Layout,
)  # fmt: skip

PREFETCH_BYTES = 2048
CACHE_LINE_BYTES = 64
PAIRS_PER_PART = 16


def multiply_pairs(b: ir.IRBuilder, codes: ir.Value, activations: ir.Value) -> ir.Value:
    """Per int32 lane: the sum of two int16 products."""
    if "avx2" in FEATURES:
        return call(b, "llvm.x86.avx2.pmadd.wd", VI, [codes, activations])
    wide = vector(I32, 2 * ROWS)
    products = b.mul(b.sext(codes, wide), b.sext(activations, wide))
    lanes = [
        b.shuffle_vector(products, products, ir.Constant(VI, list(range(first, 2 * ROWS, 2))))
        for first in (0, 1)
    ]
    return b.add(*lanes)


def pin(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same value, opaque to LLVM: else it rebuilds long sums as trees and spills registers."""
    if "avx2" not in FEATURES:
        return value
    kind = ir.FunctionType(value.type, [value.type])
    return b.call(ir.InlineAsm(kind, "", "=x,0", side_effect=True), [value])


def _splat_f32(b: ir.IRBuilder, base: ir.Value, offset: ir.Value | int) -> ir.Value:
    return splat(b, load(b, base, offset, F32), ROWS)


class _QuantizedBlock:
    """Adds one block's products to the float accumulators `sums[row of x][group]`."""

    def __init__(self, b: ir.IRBuilder, block: Block, xs: list[ir.Value], sums: Any) -> None:
        self.b = b
        self.block = block
        self.xs = xs
        self.sums = sums
        self.of_block = [block.scales(group) for group in range(GROUPS)]

    def add(self) -> None:
        layout = self.block.layout
        for part in range(layout.parts):
            if layout.scales == "int8":
                self._add_run(part, 0, range(PAIRS_PER_PART // 2))
                self._add_run(part, 1, range(PAIRS_PER_PART // 2, PAIRS_PER_PART))
            else:
                self._add_run(part, 0, range(PAIRS_PER_PART))

    def _start(self, x: ir.Value, part: int) -> ir.Value:
        if not self.block.layout.zero:
            return constant(VI, 0)
        total = load(self.b, x, part * X_BLOCK_BYTES + X_INTEGER_SUM, I32)
        return splat(self.b, self.b.mul(total, I32(-self.block.layout.zero)), ROWS)

    def _add_run(self, part: int, half: int, pairs: range) -> None:
        b, integers = self.b, [[self._start(x, part)] * GROUPS for x in self.xs]
        for pair in pairs:
            codes = [self.block.codes(part, pair, group) for group in range(GROUPS)]
            for x, totals in zip(self.xs, integers, strict=True):
                two = load(b, x, part * X_BLOCK_BYTES + 4 * pair, I32)
                activations = b.bitcast(splat(b, two, ROWS), PAIRS)
                for group in range(GROUPS):
                    product = multiply_pairs(b, codes[group], activations)
                    totals[group] = pin(b, b.add(totals[group], product))
        for group in range(GROUPS):
            self._scale_run(part, half, group, [totals[group] for totals in integers])

    def _scale_run(self, part: int, half: int, group: int, totals: list[ir.Value]) -> None:
        b = self.b
        a, minimum = self.block.scale(self.of_block[group], part, half, group)
        for x, total, sums in zip(self.xs, totals, self.sums, strict=True):
            scale = b.fmul(a, _splat_f32(b, x, part * X_BLOCK_BYTES + X_SCALE))
            value = multiply_add(b, scale, b.sitofp(total, VF), b.load(sums[group]))
            if minimum is not None:
                x_sum = _splat_f32(b, x, part * X_BLOCK_BYTES + X_SUM)
                value = multiply_add(b, minimum, x_sum, value)
            b.store(value, sums[group])


def _float_rows(b: ir.IRBuilder, layout: Layout, base: ir.Value, group: int) -> ir.Value:
    if layout.codes == "f32":
        return load(b, base, 4 * ROWS * group, VF)
    halfs = load(b, base, 2 * ROWS * group, vector(I16, ROWS))
    if layout.codes == "f16":
        return half_to_float(b, halfs)
    return b.bitcast(b.shl(b.zext(halfs, VI), constant(VI, 16)), VF)


def _add_float_column(
    b: ir.IRBuilder, layout: Layout, base: ir.Value, xs: list[ir.Value], sums: Any
) -> None:
    rows = [_float_rows(b, layout, base, group) for group in range(GROUPS)]
    for x, totals in zip(xs, sums, strict=True):
        value = _splat_f32(b, x, 0)
        for group in range(GROUPS):
            b.store(multiply_add(b, rows[group], value, b.load(totals[group])), totals[group])


def _accumulators(b: ir.IRBuilder, n_rows: int) -> list[list[ir.Value]]:
    sums = [[cgutils.alloca_once(b, VF) for _ in range(GROUPS)] for _ in range(n_rows)]
    for row in sums:
        for slot in row:
            b.store(constant(VF, 0.0), slot)
    return sums


def _write_sums(b: ir.IRBuilder, sums: list[list[ir.Value]], y: ir.Value) -> None:
    for row, totals in enumerate(sums):
        for group, slot in enumerate(totals):
            store(b, b.load(slot), y, 4 * (TILE_ROWS * row + ROWS * group))


def _generate_tile(b: ir.IRBuilder, layout: Layout, arguments: list[Any]) -> None:
    w, n_blocks, xs, y = arguments
    sums = _accumulators(b, len(xs))
    stride = TILE_ROWS * layout.block_bytes
    x_step = layout.parts * X_BLOCK_BYTES if layout.quantized else 4
    with cgutils.for_range(b, n_blocks) as loop:
        base = b.add(w, b.mul(loop.index, I64(stride)))
        here = [b.add(x, b.mul(loop.index, I64(x_step))) for x in xs]
        if len(xs) == 1 or not layout.quantized:
            for line in range(0, stride, CACHE_LINE_BYTES):
                prefetch(b, base, PREFETCH_BYTES + line)
        if layout.quantized:
            _QuantizedBlock(b, Block(b, layout, base), here, sums).add()
        else:
            _add_float_column(b, layout, base, here, sums)
    _write_sums(b, sums, y)


@intrinsic(prefer_literal=True)
def multiply_tile(typing: Any, kind, w, n_blocks, xs, y):  # type: ignore[no-untyped-def]
    """y[row of x][0:16] = tile · x for every address in the tuple xs; `kind` is Layout.index."""
    layout = BY_INDEX[kind.literal_value]

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _, tile, blocks, rows, out = arguments
        _generate_tile(b, layout, [tile, blocks, cgutils.unpack_tuple(b, rows), out])
        return context.get_dummy_value()

    rows = types.UniTuple(types.uintp, len(xs))
    return types.void(kind, types.uintp, types.intp, rows, types.uintp), generate


@intrinsic
def multiply_columns(typing: Any, w, stride, n_columns, xs, y):  # type: ignore[no-untyped-def]
    """y[row of x][0:16] = Σ_k w[k][0:16] · x[k], float32; w's columns lie `stride` bytes apart."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        base, step, columns, packed, out = arguments
        rows = cgutils.unpack_tuple(b, packed)
        sums = _accumulators(b, len(rows))
        with cgutils.for_range(b, columns) as loop:
            here = [b.add(x, b.mul(loop.index, I64(4))) for x in rows]
            column = b.add(base, b.mul(loop.index, step))
            _add_float_column(b, BY_INDEX[0], column, here, sums)
        _write_sums(b, sums, out)
        return context.get_dummy_value()

    rows = types.UniTuple(types.uintp, len(xs))
    return types.void(types.uintp, types.intp, types.intp, rows, types.uintp), generate


def _dequantized_rows(
    b: ir.IRBuilder, block: Block, part: int, pair: int, group: int
) -> list[ir.Value]:
    """The two elements of a pair as float32 vectors of 8 rows, rounded as the reference rounds."""
    half = pair // (PAIRS_PER_PART // 2) if block.layout.scales == "int8" else 0
    a, minimum = block.scale(block.scales(group), part, half, group)
    lanes = b.bitcast(block.codes(part, pair, group), VI)
    sixteen, zero = constant(VI, 16), constant(VI, block.layout.zero)
    values = []
    for code in (b.ashr(b.shl(lanes, sixteen), sixteen), b.ashr(lanes, sixteen)):
        value = b.fmul(a, b.sitofp(b.sub(code, zero), VF))
        values.append(value if minimum is None else b.fadd(value, minimum))
    return values


def _generate_unpack(b: ir.IRBuilder, layout: Layout, base: ir.Value, out: ir.Value) -> None:
    if not layout.quantized:
        for group in range(GROUPS):
            store(b, _float_rows(b, layout, base, group), out, 4 * ROWS * group)
        return
    block = Block(b, layout, base)
    for part in range(layout.parts):
        for pair in range(PAIRS_PER_PART):
            for group in range(GROUPS):
                values = _dequantized_rows(b, block, part, pair, group)
                for second, value in enumerate(values):
                    element = 32 * part + 2 * pair + second
                    store(b, value, out, 4 * (TILE_ROWS * element + ROWS * group))


@intrinsic(prefer_literal=True)
def unpack_block(typing: Any, kind, block, out):  # type: ignore[no-untyped-def]
    """out[element][0:16] = the float32 weights of one block of a tile; `kind` is Layout.index."""
    layout = BY_INDEX[kind.literal_value]

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _generate_unpack(b, layout, arguments[1], arguments[2])
        return context.get_dummy_value()

    return types.void(kind, types.uintp, types.uintp), generate
