"""LLVM IR that reads one block of a tile: scales as float32 vectors, codes as int16 lane pairs.

A vector covers 8 rows (`group` 0 or 1 of a tile). See cpu_layouts for the byte order.
"""

from llvmlite import ir

from engine.backends.cpu_jit import (
    F16,
    F32,
    FEATURES,
    I8,
    I16,
    I32,
    call,
    constant,
    load,
    vector,
)  # fmt: skip
from engine.backends.cpu_layouts import TILE_ROWS, Layout

ROWS = 8
GROUPS = TILE_ROWS // ROWS
VF = vector(F32, ROWS)
VI = vector(I32, ROWS)
VH = vector(I16, ROWS)
PAIRS = vector(I16, 2 * ROWS)


def half_to_float(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """float16 bits (i16 lanes) to float32; without F16C by integer operations, finite values."""
    count = bits.type.count
    floats, words = vector(F32, count), vector(I32, count)
    if "f16c" in FEATURES or "neon" in FEATURES:
        return b.fpext(b.bitcast(bits, vector(F16, count)), floats)
    wide = b.zext(bits, words)
    magnitude = b.shl(b.and_(wide, constant(words, 0x7FFF)), constant(words, 13))
    sign = b.shl(b.and_(wide, constant(words, 0x8000)), constant(words, 16))
    return b.fmul(b.bitcast(b.or_(magnitude, sign), floats), constant(floats, 2.0**112))


class Block:
    """One block of a tile at address `base`; values are made on demand at the builder's place."""

    def __init__(self, b: ir.IRBuilder, layout: Layout, base: ir.Value) -> None:
        self.b = b
        self.layout = layout
        self.base = base

    def _words(self, row_offset: int, group: int) -> ir.Value:
        offset = TILE_ROWS * row_offset + 4 * ROWS * group
        return load(self.b, self.base, offset, VI)

    def _halfs(self, group: int) -> ir.Value:
        return half_to_float(self.b, load(self.b, self.base, 2 * ROWS * group, VH))

    def _half_pair(self, group: int) -> tuple[ir.Value, ir.Value]:
        b, word = self.b, self._words(0, group)
        high = b.trunc(b.lshr(word, constant(VI, 16)), VH)
        return half_to_float(b, b.trunc(word, VH)), half_to_float(b, high)

    def scales(self, group: int) -> tuple[ir.Value, ...]:
        """What a block stores once: (d), (d, m), or (2^(e−128)) for MXFP4's doubled codes."""
        kind = self.layout.scales
        if kind in ("half_pair", "six_bit_pair"):
            return self._half_pair(group)
        return (self._exponent(group) if kind == "exponent" else self._halfs(group),)

    def _exponent(self, group: int) -> ir.Value:
        """2^(e − 128) for any exponent byte; the two smallest are denormal."""
        b = self.b
        byte = b.zext(load(b, self.base, ROWS * group, vector(I8, ROWS)), VI)
        normal = b.shl(b.sub(byte, constant(VI, 1)), constant(VI, 23))
        denormal = b.shl(constant(VI, 0x00200000), b.and_(byte, constant(VI, 1)))
        small = b.icmp_unsigned("<", byte, constant(VI, 2))
        return b.bitcast(b.select(small, denormal, normal), VF)

    def scale(
        self, of_block: tuple[ir.Value, ...], part: int, half: int, group: int
    ) -> tuple[ir.Value, ir.Value | None]:
        """(a, b or None) for one part of 32 elements (`half` of it: 16 elements, for int8)."""
        b, kind = self.b, self.layout.scales
        if kind == "half_pair":
            return of_block[0], of_block[1]
        if kind == "six_bit_pair":
            c, n = self._six_bit(part, group)
            minus = b.fneg(of_block[1])
            return (
                b.fmul(of_block[0], b.sitofp(c, VF)),
                b.fmul(minus, b.sitofp(n, VF)),
            )
        if kind == "int8":
            word, byte = divmod(2 * part + half, 4)
            left = b.shl(self._words(2 + 4 * word, group), constant(VI, 24 - 8 * byte))
            return b.fmul(of_block[0], b.sitofp(b.ashr(left, constant(VI, 24)), VF)), None
        return of_block[0], None

    def _six_bit(self, part: int, group: int) -> tuple[ir.Value, ir.Value]:
        b, byte = self.b, 8 * (part % 4)
        first, second = self._words(4, group), self._words(8, group)

        def field(word: ir.Value, shift: int, mask: int) -> ir.Value:
            return b.and_(b.lshr(word, constant(VI, shift)), constant(VI, mask))

        if part < 4:
            return field(first, byte, 63), field(second, byte, 63)
        third, four = self._words(12, group), constant(VI, 4)
        c = b.or_(field(third, byte, 15), b.shl(field(first, byte + 6, 3), four))
        n = b.or_(field(third, byte + 4, 15), b.shl(field(second, byte + 6, 3), four))
        return c, n

    def _pairs(self, part: int, word: int, group: int) -> ir.Value:
        row_offset = self.layout.scale_bytes + part * self.layout.part_bytes + 4 * word
        return self.b.bitcast(self._words(row_offset, group), PAIRS)

    def codes(self, part: int, pair: int, group: int) -> ir.Value:
        """Elements (2·pair, 2·pair + 1) of a part for 8 rows, as 16 int16 lanes."""
        if self.layout.codes == "8":
            return self._byte(part, pair, group)
        nibble = self._field(self._pairs(part, pair // 4, group), 4 * (pair % 4), 15, 0)
        if self.layout.codes == "e2m1":
            return self._doubled_e2m1(nibble)
        if self.layout.codes == "5":
            high = self._field(self._pairs(part, 4, group), pair, 1, 4)
            return self.b.or_(nibble, high)
        if self.layout.codes == "6":
            high = self._field(self._pairs(part, 4 + pair // 8, group), 2 * (pair % 8), 3, 4)
            return self.b.sub(self.b.or_(nibble, high), constant(PAIRS, 32))
        return nibble

    def _byte(self, part: int, pair: int, group: int) -> ir.Value:
        b, eight = self.b, constant(PAIRS, 8)
        lanes = self._pairs(part, pair // 2, group)
        return b.ashr(lanes if pair % 2 else b.shl(lanes, eight), eight)

    def _field(self, lanes: ir.Value, at: int, mask: int, to: int) -> ir.Value:
        """The bits `mask << at` of each lane, moved to bit `to`."""
        b, shift = self.b, to - at
        if shift > 0:
            lanes = b.shl(lanes, constant(PAIRS, shift))
        elif shift < 0:
            lanes = b.lshr(lanes, constant(PAIRS, -shift))
        top = mask << at == 0xFFFF & ~((1 << at) - 1)
        return lanes if top and to == 0 else b.and_(lanes, constant(PAIRS, mask << to))

    def _doubled_e2m1(self, code: ir.Value) -> ir.Value:
        """Twice the E2M1 value: 0 1 2 3 4 6 8 12 for the low three bits, bit 3 is the sign."""
        b = self.b
        low = b.and_(code, constant(PAIRS, 7))

        def above(limit: int) -> ir.Value:
            name = f"llvm.usub.sat.v{2 * ROWS}i16"
            return call(b, name, PAIRS, [low, constant(PAIRS, limit)])

        steep = b.shl(above(6), constant(PAIRS, 1))
        size = b.add(b.add(low, above(4)), steep)
        sign = b.ashr(b.shl(code, constant(PAIRS, 12)), constant(PAIRS, 15))
        return b.sub(b.xor(size, sign), sign)
