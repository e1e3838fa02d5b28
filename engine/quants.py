"""The block formats of GGUF tensors: sizes, and dequantization to float32 with NumPy.

Layouts (all little-endian; d, m and dmin are float16): Q4_0 d, nibbles; Q4_1 d, m, nibbles; Q5_0 d,
32 high bits, nibbles; Q5_1 d, m, high bits, nibbles; Q8_0 d, 32 int8; Q4_K d, dmin, 12 bytes of
6-bit scales and mins, nibbles; Q5_K the same with 32 bytes of high bits before the nibbles; Q6_K
128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d; MXFP4 an E8M0 exponent byte,
nibbles that are E2M1 numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockFormat:
    """How one tensor type stores its numbers: `block_size` weights in `block_bytes` bytes."""

    name: str
    type_id: int
    block_size: int
    block_bytes: int
    unpack: Callable[[Bytes], Floats]

    def row_bytes(self, n_columns: int) -> int:
        """Bytes of a row; ValueError where the row does not divide into whole blocks."""
        if n_columns % self.block_size:
            raise ValueError(
                f"rows of {n_columns} do not divide by the {self.name} block of {self.block_size}"
            )
        return n_columns // self.block_size * self.block_bytes

    def dequantize(self, raw: Bytes) -> Floats:
        """uint8[..., n·block_bytes] -> float32[..., n·block_size]."""
        raw = np.asarray(raw)
        if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % self.block_bytes:
            raise ValueError(
                f"{self.name}: uint8[..., n·{self.block_bytes}] wanted, got {raw.dtype}{raw.shape}"
            )
        blocks = np.ascontiguousarray(raw).reshape(-1, self.block_bytes)
        n_blocks = raw.shape[-1] // self.block_bytes
        with np.errstate(all="ignore"):
            numbers = self.unpack(blocks)
        return numbers.reshape(*raw.shape[:-1], n_blocks * self.block_size)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[n, k] bytes -> [n, 2k]: all low nibbles, then all high nibbles."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """[n, 4] bytes, bit j of the little-endian word -> [n, 32] of 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4")


def _f16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (quants.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * quants.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 scale bytes of Q4_K and Q5_K -> eight 6-bit scales and eight 6-bit mins."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    mins = np.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=1)
    return scales, mins


def _sub_block_nibbles(packed: Bytes) -> Bytes:
    """128 bytes -> [n, 8, 32]: low nibbles of 32 bytes are one sub-block, high ones the next."""
    groups = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32)


def _scaled_sub_blocks(blocks: Bytes, quants: Bytes) -> Floats:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    least = (_half(blocks, 2) * mins.astype(np.float32))[:, :, None]
    return scale * quants.astype(np.float32) - least


def _q4_k(blocks: Bytes) -> Floats:
    return _scaled_sub_blocks(blocks, _sub_block_nibbles(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    bit_of = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (blocks[:, None, 16:48] >> bit_of & np.uint8(1)) << np.uint8(4)
    return _scaled_sub_blocks(blocks, _sub_block_nibbles(blocks[:, 48:]) | high)


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shift & 3) << 4
    quants = (low | high).astype(np.float32) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[:, :, None] * quants.reshape(-1, 16, 16)


_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _mxfp4(blocks: Bytes) -> Floats:
    half_scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)  # finite for e = 255
    return half_scale * _E2M1_DOUBLED[_nibbles(blocks[:, 1:])]


_FORMATS = (
    BlockFormat("F32", 0, 1, 4, _f32),
    BlockFormat("F16", 1, 1, 2, _f16),
    BlockFormat("Q4_0", 2, 32, 18, _q4_0),
    BlockFormat("Q4_1", 3, 32, 20, _q4_1),
    BlockFormat("Q5_0", 6, 32, 22, _q5_0),
    BlockFormat("Q5_1", 7, 32, 24, _q5_1),
    BlockFormat("Q8_0", 8, 32, 34, _q8_0),
    BlockFormat("Q4_K", 12, 256, 144, _q4_k),
    BlockFormat("Q5_K", 13, 256, 176, _q5_k),
    BlockFormat("Q6_K", 14, 256, 210, _q6_k),
    BlockFormat("BF16", 30, 1, 2, _bf16),
    BlockFormat("MXFP4", 39, 32, 17, _mxfp4),
)

BLOCK_FORMATS: dict[str, BlockFormat] = {entry.name: entry for entry in _FORMATS}
FORMAT_OF_TYPE_ID: dict[int, BlockFormat] = {entry.type_id: entry for entry in _FORMATS}

UNSUPPORTED_TYPES: dict[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
}  # fmt: skip


def quant_kind(bytes_by_type: dict[str, int]) -> str:
    """The type that holds most of the weights' bytes: what /health calls quant_kind."""
    return max(bytes_by_type.items(), key=lambda item: (item[1], item[0]), default=("none", 0))[0]


def dequantize_tensor(type_name: str, raw: Any, shape: tuple[int, ...]) -> Floats:
    """A whole tensor as float32[shape]; raw is uint8[rows_total, row_bytes]."""
    return BLOCK_FORMATS[type_name].dequantize(raw).reshape(shape)
