"""Interleaved tiles hold the same weights, and products agree with float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from engine.backends.cpu_jit import address_of
from engine.backends.cpu_layouts import LAYOUTS, TILE_ROWS, X_BLOCK_BYTES, Layout
from engine.backends.cpu_repack import repack
from engine.backends.cpu_tiles import multiply_tile, unpack_block
from engine.backends.cpu_vectors import quantize_block
from engine.quants import BLOCK_FORMATS

ROWS, COLUMNS = 35, 512
PRODUCT_BOUND = 1e-4
"""Of the largest product: int16 activations keep 2^-16 of a block's largest element."""


def random_rows(layout: Layout) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(layout.index)
    if layout.type == "F32":
        return rng.standard_normal((ROWS, COLUMNS)).astype(np.float32).view(np.uint8)
    shape = (ROWS, COLUMNS // layout.block, layout.block_bytes)
    raw = rng.integers(0, 256, shape, dtype=np.uint8)
    halfs = rng.standard_normal((*shape[:2], 2)).astype(np.float16).view(np.uint8)
    if layout.type == "MXFP4":
        raw[..., 0] = rng.integers(120, 132, shape[:2])
    elif layout.type == "BF16":
        raw[..., 1] = 0x3F
    elif layout.type == "Q6_K":
        raw[..., 208:] = halfs[..., :2]
    else:
        raw[..., :2] = halfs[..., :2]
        if layout.scale_bytes >= 4:
            raw[..., 2:4] = halfs[..., 2:]
    return raw.reshape(ROWS, -1)


def compiled(kind: int) -> tuple[Callable[..., None], Callable[..., None]]:
    @njit
    def multiply(tile: int, n_blocks: int, x: int, step: int, y: int) -> None:
        x0, s = np.uint64(x), np.uint64(step)
        multiply_tile(
            kind, np.uint64(tile), n_blocks, (x0, x0 + s, x0 + s + s, x0 + s + s + s), np.uint64(y)
        )
        multiply_tile(kind, np.uint64(tile), n_blocks, (x0,), np.uint64(y) + np.uint64(256))

    @njit
    def unpack(block: int, out: int) -> None:
        unpack_block(kind, np.uint64(block), np.uint64(out))

    return multiply, unpack


@njit
def quantize(x: int, out: int, n_blocks: int) -> None:
    for at in range(n_blocks):
        quantize_block(np.uint64(x + 128 * at), np.uint64(out + 80 * at))


@pytest.mark.parametrize("type_name", list(LAYOUTS))
def test_every_type_unpacks_bit_for_bit_and_multiplies_within_the_bound(type_name: str) -> None:
    layout = LAYOUTS[type_name]
    raw = random_rows(layout)
    wanted = BLOCK_FORMATS[type_name].dequantize(raw)
    packed = np.zeros(layout.matrix_bytes(ROWS, COLUMNS), np.uint8)
    repack(type_name, raw, COLUMNS, packed)
    multiply, unpack = compiled(layout.index)
    x = np.random.default_rng(5).standard_normal((4, COLUMNS)).astype(np.float32)
    blocks = np.zeros((4, COLUMNS // 32 * X_BLOCK_BYTES), np.uint8)
    quantize(address_of(x), address_of(blocks), 4 * COLUMNS // 32)
    rows_of_x = blocks if layout.quantized else x
    sums, part = np.zeros((5, TILE_ROWS), np.float32), np.zeros((layout.block, 16), np.float32)
    products = np.einsum("rc,tc->tr", wanted.astype(np.float64), x.astype(np.float64))
    for tile in range(-(-ROWS // TILE_ROWS)):
        rows = slice(tile * TILE_ROWS, min(ROWS, (tile + 1) * TILE_ROWS))
        n_rows = rows.stop - rows.start
        base = address_of(packed) + tile * layout.tile_bytes(COLUMNS)
        n_blocks = COLUMNS // layout.block
        multiply(base, n_blocks, address_of(rows_of_x), rows_of_x.strides[0], address_of(sums))
        assert np.array_equal(sums[0], sums[4])
        error = np.abs(sums[:4, :n_rows] - products[:, rows]).max()
        assert error <= PRODUCT_BOUND * np.abs(products).max()
        for block in range(n_blocks):
            unpack(base + block * TILE_ROWS * layout.block_bytes, address_of(part))
            columns = slice(block * layout.block, (block + 1) * layout.block)
            assert np.array_equal(part.T[:n_rows], wanted[rows, columns])


@pytest.mark.parametrize("type_name", list(LAYOUTS))
def test_repacking_takes_no_more_bytes_than_whole_tiles(type_name: str) -> None:
    layout = LAYOUTS[type_name]
    assert layout.matrix_bytes(32, 512) == 32 * BLOCK_FORMATS[type_name].row_bytes(512)


def test_a_row_of_zeros_quantizes_to_zeros() -> None:
    x, out = np.zeros(32, np.float32), np.ones(X_BLOCK_BYTES, np.uint8)
    quantize(address_of(x), address_of(out), 1)
    assert not out[:76].any()
