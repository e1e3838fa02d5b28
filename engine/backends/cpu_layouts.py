"""How weights lie in memory: GGUF's blocks, 16 rows interleaved, the same bits in another order.

A tile is 16 rows. Within a block of a tile every field comes for all 16 rows before the next field,
so a vector lane is a row, sums need no horizontal step, and the stream is contiguous. Codes are
stored so that 16-bit lane pairs hold elements (2j, 2j + 1):

- 4 bits: word c of a row, nibble s of its 16-bit half l is element 8c + 2s + l; 4 words for 32;
- fifth bits: one word, bit j of half l is element 2j + l;
- two high bits: 2 words, field f of half l of word w is element 16w + 2f + l;
- 8 bits: word c holds elements 4c, 4c + 2, 4c + 1, 4c + 3.
"""

from dataclasses import dataclass
from typing import Literal

TILE_ROWS = 16
X_BLOCK = 32
X_BLOCK_BYTES = 80
"""32 int16 activations, then float32 scale, float32 scale·Σ, int32 Σ, 4 bytes of padding."""
X_SCALE, X_SUM, X_INTEGER_SUM = 64, 68, 72

Scales = Literal["half", "half_pair", "six_bit_pair", "int8", "exponent", "float"]
Codes = Literal["4", "5", "6", "8", "e2m1", "f32", "f16", "bf16"]


@dataclass(frozen=True)
class Layout:
    """One GGUF type: `block` elements of a row take `block_bytes`; code q means a·(q − zero) + b.

    `scale_bytes` of the block (a row) come first, then `part_bytes` for every 32 elements.
    """

    type: str
    index: int
    block: int
    block_bytes: int
    codes: Codes
    scales: Scales
    zero: int = 0
    scale_bytes: int = 0

    @property
    def quantized(self) -> bool:
        """Whether elements are integer codes that meet int16 activations."""
        return self.scales != "float"

    @property
    def parts(self) -> int:
        """How many runs of 32 elements a block has."""
        return self.block // X_BLOCK

    @property
    def part_bytes(self) -> int:
        """Bytes of one row's codes for 32 elements."""
        return (self.block_bytes - self.scale_bytes) // self.parts

    def tile_bytes(self, columns: int) -> int:
        """Bytes of one tile of 16 rows."""
        return TILE_ROWS * self.block_bytes * (columns // self.block)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix, its rows padded to whole tiles."""
        return -(-rows // TILE_ROWS) * self.tile_bytes(columns)


_ALL = (
    Layout("F32", 0, 1, 4, "f32", "float"),
    Layout("F16", 1, 1, 2, "f16", "float"),
    Layout("BF16", 2, 1, 2, "bf16", "float"),
    Layout("Q4_0", 3, 32, 18, "4", "half", zero=8, scale_bytes=2),
    Layout("Q4_1", 4, 32, 20, "4", "half_pair", scale_bytes=4),
    Layout("Q5_0", 5, 32, 22, "5", "half", zero=16, scale_bytes=2),
    Layout("Q5_1", 6, 32, 24, "5", "half_pair", scale_bytes=4),
    Layout("Q8_0", 7, 32, 34, "8", "half", scale_bytes=2),
    Layout("Q4_K", 8, 256, 144, "4", "six_bit_pair", scale_bytes=16),
    Layout("Q5_K", 9, 256, 176, "5", "six_bit_pair", scale_bytes=16),
    Layout("Q6_K", 10, 256, 210, "6", "int8", scale_bytes=18),
    Layout("MXFP4", 11, 32, 17, "e2m1", "exponent", scale_bytes=1),
)
LAYOUTS = {layout.type: layout for layout in _ALL}
BY_INDEX = {layout.index: layout for layout in _ALL}
