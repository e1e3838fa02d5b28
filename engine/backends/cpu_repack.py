"""From GGUF's rows of blocks to interleaved tiles (cpu_layouts): the same bits, another order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.cpu_layouts import LAYOUTS, TILE_ROWS, Layout
from engine.backends.cpu_threads import native

Bytes = NDArray[np.uint8]

SCALE_FIELDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "half": ((0, 2, 0),),
    "half_pair": ((0, 4, 0),),
    "six_bit_pair": ((0, 4, 0), (4, 4, 4), (8, 4, 8), (12, 4, 12)),
    "int8": ((208, 2, 0), (192, 4, 2), (196, 4, 6), (200, 4, 10), (204, 4, 14)),
    "exponent": ((0, 1, 0),),
    "float": (),
}
"""Of one GGUF block: (offset, bytes, offset in the interleaved row)."""


@native
def _split_nibbles(block: Any, at: int, codes: Any, to: int, n: int) -> None:
    """Of n bytes: low nibbles are the first n elements, high nibbles the next n."""
    for i in range(n):
        codes[to + i] = block[at + i] & 15
        codes[to + n + i] = block[at + i] >> 4


@native
def _fifth_bits(block: Any, at: int, codes: Any) -> None:
    for i in range(32):
        codes[i] |= ((block[at + i // 8] >> (i % 8)) & 1) << 4


@native
def _read_q6_k(block: Any, codes: Any) -> None:
    for half in range(2):
        for i in range(32):
            high = block[128 + 32 * half + i]
            low, next_low = block[64 * half + i], block[64 * half + 32 + i]
            at = 128 * half + i
            codes[at] = (low & 15) | (high & 3) << 4
            codes[at + 32] = (next_low & 15) | ((high >> 2) & 3) << 4
            codes[at + 64] = (low >> 4) | ((high >> 4) & 3) << 4
            codes[at + 96] = (next_low >> 4) | (high >> 6) << 4


@native
def _read_codes(kind: int, block: Any, codes: Any) -> None:
    """The integer codes of one block in natural order; `kind` is Layout.index."""
    if kind == 7:
        for i in range(32):
            codes[i] = block[2 + i]
    elif kind == 10:
        _read_q6_k(block, codes)
    elif kind in (8, 9):
        start = 16 if kind == 8 else 48
        for pair in range(4):
            _split_nibbles(block, start + 32 * pair, codes, 64 * pair, 32)
        if kind == 9:
            for i in range(256):
                codes[i] |= ((block[16 + i % 32] >> (i // 32)) & 1) << 4
    else:
        start = (0, 0, 0, 2, 4, 6, 8, 0, 0, 0, 0, 1)[kind]
        _split_nibbles(block, start, codes, 0, 16)
        if kind in (5, 6):
            _fifth_bits(block, start - 4, codes)


@native
def _put_word(word: np.uint32, out: Any, at: int) -> None:
    for byte in range(4):
        out[at + byte] = (word >> np.uint32(8 * byte)) & np.uint32(255)


@native
def _pack_fields(
    codes: Any, start: int, low: int, bits: int, n_words: int, out: Any, at: int
) -> None:
    """Words of `bits`-wide fields: element (32 // n_words)·w + 2f + l is field f, half l, w."""
    per_word = 32 // n_words
    for w in range(n_words):
        word = np.uint32(0)
        for i in range(per_word):
            field = np.uint32((codes[start + per_word * w + i] >> low) & ((1 << bits) - 1))
            word |= field << np.uint32(bits * (i // 2) + 16 * (i % 2))
        _put_word(word, out, at + 64 * w)


@native
def _pack_part(code_bits: int, codes: Any, start: int, out: Any, at: int) -> None:
    if code_bits == 8:
        for c in range(8):
            e = start + 4 * c
            out[at + 64 * c] = codes[e]
            out[at + 64 * c + 1] = codes[e + 2]
            out[at + 64 * c + 2] = codes[e + 1]
            out[at + 64 * c + 3] = codes[e + 3]
        return
    _pack_fields(codes, start, 0, 4, 4, out, at)
    if code_bits == 5:
        _pack_fields(codes, start, 4, 1, 1, out, at + 256)
    elif code_bits == 6:
        _pack_fields(codes, start, 4, 2, 2, out, at + 256)


@native
def _repack(raw: Any, out: Any, fields: Any, shape: Any) -> None:
    """From raw [rows, row_bytes] to out [tiles, blocks, 16·block_bytes]; missing rows stay 0."""
    kind, block_bytes, scale_bytes, part_bytes, code_bits = shape
    codes = np.zeros(256, np.uint8)
    n_rows, n_blocks = raw.shape[0], out.shape[1]
    for row in range(n_rows):
        tile, lane = row // 16, row % 16
        for index in range(n_blocks):
            block = raw[row, index * block_bytes : (index + 1) * block_bytes]
            target = out[tile, index]
            for f in range(fields.shape[0]):
                size = fields[f, 1]
                to = 16 * fields[f, 2] + size * lane
                for byte in range(size):
                    target[to + byte] = block[fields[f, 0] + byte]
            _read_codes(kind, block, codes)
            for part in range((block_bytes - scale_bytes) // part_bytes):
                at = 16 * (scale_bytes + part * part_bytes) + 4 * lane
                _pack_part(code_bits, codes, 32 * part, target, at)


def _interleave_floats(layout: Layout, raw: Bytes, out: Bytes) -> None:
    kind = np.uint32 if layout.codes == "f32" else np.uint16
    rows = np.ascontiguousarray(raw).view(kind)
    whole, left = divmod(rows.shape[0], TILE_ROWS)
    tiles = out.view(kind).reshape(-1, rows.shape[1], TILE_ROWS)
    full = rows[: whole * TILE_ROWS].reshape(whole, TILE_ROWS, rows.shape[1])
    tiles[:whole] = full.transpose(0, 2, 1)
    if left:
        tiles[whole, :, :left] = rows[whole * TILE_ROWS :].T


_CODE_BITS = {"4": 4, "5": 5, "6": 6, "8": 8, "e2m1": 4}


def repack(type_name: str, raw: Bytes, columns: int, out: Bytes) -> None:
    """Interleave rows; raw [rows, row_bytes] uint8, out a zeroed flat uint8 of matrix_bytes."""
    layout = LAYOUTS[type_name]
    if not layout.quantized:
        _interleave_floats(layout, raw, out)
        return
    tiles = out.reshape(-1, columns // layout.block, TILE_ROWS * layout.block_bytes)
    fields = np.array(SCALE_FIELDS[layout.scales], np.int64).reshape(-1, 3)
    bits = _CODE_BITS[layout.codes]
    shape = (layout.index, layout.block_bytes, layout.scale_bytes, layout.part_bytes, bits)
    _repack(raw, tiles, fields, shape)
