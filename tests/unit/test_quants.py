"""Every block format against the `gguf` package, bit for bit."""

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.quants import BLOCK_FORMATS, quant_kind

HALVES = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00], "<u2"
)
SCALES_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def oracle(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        found = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    return np.asarray(found, np.float32)


def assert_bits_equal(name: str, raw: NDArray[np.uint8]) -> None:
    ours, theirs = BLOCK_FORMATS[name].dequantize(raw), oracle(name, raw)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.reshape(ours.shape).view(np.uint32))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_random_blocks_dequantize_as_the_oracle_does(name: str) -> None:
    raw = np.random.default_rng(1).integers(
        0, 256, (3000, 2 * BLOCK_FORMATS[name].block_bytes), dtype=np.uint8
    )
    assert_bits_equal(name, raw)


@pytest.mark.parametrize("name", SCALES_AT)
@pytest.mark.parametrize("fill", [0x00, 0x0F, 0x7F, 0x80, 0xF0, 0xFF])
def test_extreme_scales_and_quants_dequantize_as_the_oracle_does(name: str, fill: int) -> None:
    pairs = np.array(np.meshgrid(HALVES, HALVES)).reshape(2, -1).T
    raw = np.full((len(pairs), BLOCK_FORMATS[name].block_bytes), fill, np.uint8)
    for index, at in enumerate(SCALES_AT[name]):
        raw[:, at : at + 2] = np.ascontiguousarray(pairs[:, index]).view(np.uint8).reshape(-1, 2)
    assert_bits_equal(name, raw)


def test_every_mxfp4_exponent_dequantizes_as_the_oracle_does() -> None:
    raw = np.zeros((256, 17), np.uint8)
    raw[:, 0] = np.arange(256)
    raw[:, 1:] = np.arange(16) * 16 + np.arange(16)[::-1]
    assert_bits_equal("MXFP4", raw)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_pattern_widens_as_the_oracle_does(name: str) -> None:
    assert_bits_equal(name, np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(1, -1))


def test_sizes_are_those_of_the_format() -> None:
    for name, block in BLOCK_FORMATS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (block.block_size, block.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
        assert block.type_id == kind


def test_leading_dimensions_are_kept() -> None:
    assert BLOCK_FORMATS["Q8_0"].dequantize(np.zeros((3, 5, 68), np.uint8)).shape == (3, 5, 64)


@pytest.mark.parametrize("wrong", [np.zeros(17, np.uint8), np.zeros(18, np.int8)])
def test_bytes_that_are_no_whole_blocks_are_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="Q4_0"):
        BLOCK_FORMATS["Q4_0"].dequantize(wrong)


def test_rows_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 896 do not divide by the Q4_K block of 256"):
        BLOCK_FORMATS["Q4_K"].row_bytes(896)


def test_quant_kind_is_the_type_with_most_bytes() -> None:
    assert quant_kind({"F32": 10, "Q4_1": 90, "Q8_0": 50}) == "Q4_1"
    assert quant_kind({}) == "none"
