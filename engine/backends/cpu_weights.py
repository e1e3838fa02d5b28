"""The weights of one model in memory: interleaved and still quantized, vectors as float32."""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends import Progress
from engine.backends.cpu_jit import address_of
from engine.backends.cpu_layouts import LAYOUTS, TILE_ROWS, Layout
from engine.backends.cpu_repack import repack
from engine.errors import ModelLoadError
from engine.gguf import Tensor
from engine.quants import dequantize_tensor

CHUNK_ROWS = 1024
ALIGNMENT = 64


@dataclass(frozen=True)
class Matrix:
    """An interleaved matrix (or a stack of `n_stacked` of them, one after the other)."""

    layout: Layout
    rows: int
    columns: int
    n_stacked: int
    bytes: NDArray[np.uint8]

    @property
    def tile_bytes(self) -> int:
        """Bytes of 16 rows."""
        return self.layout.tile_bytes(self.columns)

    @property
    def n_tiles(self) -> int:
        """Tiles of one matrix of the stack."""
        return -(-self.rows // TILE_ROWS)

    @property
    def n_blocks(self) -> int:
        """Blocks in a row."""
        return self.columns // self.layout.block

    @property
    def address(self) -> int:
        """Where the first tile lies."""
        return address_of(self.bytes)


def aligned_zeros(n_bytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes that start at a cache line."""
    raw = np.zeros(n_bytes + ALIGNMENT, np.uint8)
    skip = -address_of(raw) % ALIGNMENT
    return raw[skip : skip + n_bytes]


def matrix_shape(tensor: Tensor) -> tuple[int, int, int]:
    """(matrices in the stack, rows, columns)."""
    *stack, rows, columns = tensor.shape
    return int(np.prod(stack, dtype=np.int64)), rows, columns


def _layout(tensor: Tensor) -> Layout:
    layout = LAYOUTS.get(tensor.type)
    if layout is None:
        raise ModelLoadError(
            f"tensor {tensor.name!r} has type {tensor.type}; this backend runs "
            f"{', '.join(sorted(LAYOUTS))}"
        )
    if tensor.shape[-1] % layout.block:
        raise ModelLoadError(
            f"tensor {tensor.name!r}: rows of {layout.block}·n elements wanted for "
            f"{tensor.type}, got {tensor.shape[-1]}"
        )
    return layout


def planned_bytes(tensors: Mapping[str, Tensor], names: Iterable[str], vectors: set[str]) -> int:
    """Bytes that `Weights` will hold for these tensors; refuses types it cannot run."""
    total = 0
    for name in names:
        stack, rows, columns = matrix_shape(tensors[name]) if name not in vectors else (1, 1, 0)
        if name in vectors:
            total += 4 * int(np.prod(tensors[name].shape))
        else:
            total += stack * _layout(tensors[name]).matrix_bytes(rows, columns)
    return total


def release_pages(raw: NDArray[np.uint8]) -> None:
    """Drop the file pages of a read-only view from resident memory; they stay in the page cache."""
    if not sys.platform.startswith("linux"):
        return
    start = -(-address_of(raw) // mmap.PAGESIZE) * mmap.PAGESIZE
    length = address_of(raw) + raw.nbytes - start
    if length > 0:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _interleave(tensor: Tensor, matrix: Matrix) -> None:
    """Repack in runs of whole tiles, so that little of the file is resident at a time.

    Each release begins at the tensor's start: a page fault maps its neighbours again.
    """
    size = matrix.n_tiles * matrix.tile_bytes
    for index in range(matrix.n_stacked):
        raw = tensor.raw[index * matrix.rows : (index + 1) * matrix.rows]
        out = matrix.bytes[index * size : (index + 1) * size]
        for row in range(0, matrix.rows, CHUNK_ROWS):
            here = raw[row : row + CHUNK_ROWS]
            first = row // TILE_ROWS * matrix.tile_bytes
            end = -(-(row + len(here)) // TILE_ROWS) * matrix.tile_bytes
            repack(tensor.type, here, matrix.columns, out[first:end])
            release_pages(tensor.raw[: index * matrix.rows + row + len(here)])


class Weights:
    """Every tensor that a program names: `matrices` interleaved, `vectors` as float32."""

    def __init__(self) -> None:
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, NDArray[np.float32]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        matrices = sum(matrix.bytes.nbytes for matrix in self.matrices.values())
        return matrices + sum(vector.nbytes for vector in self.vectors.values())

    def load(
        self, tensors: list[Tensor], vectors: set[str], n_threads: int, progress: Progress
    ) -> None:
        """Copy the tensors out of the file, several at a time; reports file bytes done."""
        total, done = sum(tensor.raw.nbytes for tensor in tensors), 0
        progress(0, total)
        order = sorted(tensors, key=lambda tensor: -tensor.raw.nbytes)
        pool = ThreadPoolExecutor(n_threads)
        try:
            jobs = [(t, self._begin(pool, t, is_vector=t.name in vectors)) for t in order]
            for tensor, job in jobs:
                job.result()
                done += tensor.raw.nbytes
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, tensor: Tensor, *, is_vector: bool
    ) -> "Future[None]":
        """Start one tensor; its memory is taken here, for a dead thread's heap is never trimmed."""
        if is_vector:
            return pool.submit(self._widen, tensor)
        layout = _layout(tensor)
        stack, rows, columns = matrix_shape(tensor)
        tiles = aligned_zeros(stack * layout.matrix_bytes(rows, columns))
        matrix = Matrix(layout, rows, columns, stack, tiles)
        self.matrices[tensor.name] = matrix
        return pool.submit(_interleave, tensor, matrix)

    def _widen(self, tensor: Tensor) -> None:
        values = dequantize_tensor(tensor.type, tensor.raw, tensor.shape)
        self.vectors[tensor.name] = np.array(values, np.float32)  # never a view of the file
