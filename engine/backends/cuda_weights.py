"""Weights on the device: the file's blocks through pinned chunks into packed tiles, overlapped."""

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import Progress
from engine.backends.cuda_memory import DevicePool
from engine.gguf import Tensor
from kernels.arrays import DeviceArray
from kernels.context import KernelContext
from kernels.matrix import PackedMatrix, RowPlacement, matrix_bytes, pack_rows

CHUNK_BYTES = 32 << 20
_N_BUFFERS = 2
_COPY_THREADS = 4
_MADV_DONTNEED = 4
_HOST_TO_DEVICE = 1


@dataclass
class _Buffer:
    """A pinned host chunk, its device twin, and the event after which both may be reused."""

    host: NDArray[np.uint8]
    device: DeviceArray
    done: Any


@dataclass(frozen=True)
class Part:
    """Rows [start, stop) of a tensor (of each expert's matrix) and where they go."""

    tensor: Tensor
    start: int
    stop: int
    placement: RowPlacement


@dataclass
class WeightLoader:
    """Copies tensors to the device in chunks; `bytes_total` is what progress counts towards."""

    memory: DevicePool
    context: KernelContext
    stream: Any
    progress: Progress
    bytes_total: int
    bytes_loaded: int = 0
    _buffers: list[_Buffer] = field(default_factory=list)
    _turn: int = 0
    _copiers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_COPY_THREADS))

    def open(self) -> None:
        """Take the pinned and device chunks."""
        cupy = self.memory.cupy
        for _ in range(_N_BUFFERS):
            pinned = cupy.cuda.alloc_pinned_memory(CHUNK_BYTES)
            host = np.frombuffer(pinned, np.uint8, CHUNK_BYTES)
            device = self.memory.array((CHUNK_BYTES,), "u8", "workspace")
            self._buffers.append(_Buffer(host, device, cupy.cuda.Event(disable_timing=True)))

    def close(self) -> None:
        """Wait for the copies and give the chunks back."""
        self.stream.synchronize()
        self._copiers.shutdown()
        for buffer in self._buffers:
            self.memory.free(buffer.device.pointer)
        self._buffers.clear()
        self.memory.cupy.get_default_pinned_memory_pool().free_all_blocks()

    def matrix(
        self, type_name: str, parts: tuple[Part, ...], tile_rows: int, n_experts: int = 1
    ) -> PackedMatrix:
        """The packed matrix of `parts`, which together are `n_experts` matrices of one width."""
        columns = parts[0].tensor.shape[-1]
        rows = sum(part.stop - part.start for part in parts)
        size = matrix_bytes(type_name, rows, columns, tile_rows) * n_experts
        tiles = self.memory.array((size,), "u8", "weights")
        matrix = PackedMatrix(type_name, rows, columns, tile_rows, tiles, n_experts)
        for part in parts:
            tensor_rows = part.tensor.raw.shape[0] // n_experts
            for expert in range(n_experts):
                first = expert * tensor_rows
                raw = part.tensor.raw[first + part.start : first + part.stop]
                self._pack(raw, matrix, part.placement, expert)
            self._forget(part.tensor.raw)
        return matrix

    def _pack(
        self, raw: NDArray[np.uint8], matrix: PackedMatrix, placement: RowPlacement, expert: int
    ) -> None:
        row_bytes = raw.shape[1]
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, raw.shape[0], step):
            chunk = raw[start : start + step]
            buffer = self._buffers[self._turn]
            self._turn = (self._turn + 1) % _N_BUFFERS
            buffer.done.synchronize()
            self._copy(chunk, buffer.host)
            self.memory.cupy.cuda.runtime.memcpyAsync(
                buffer.device.pointer, buffer.host.ctypes.data, chunk.size, _HOST_TO_DEVICE,
                self.stream.ptr,
            )  # fmt: skip
            source = DeviceArray(buffer.device.pointer, "u8", chunk.shape)
            at = RowPlacement(placement.first_row + start, placement.stride, placement.offset)
            pack_rows(self.context, source, matrix, at, expert)
            buffer.done.record(self.stream)
            self.bytes_loaded += chunk.size
            self.progress(self.bytes_loaded, self.bytes_total)

    def _copy(self, chunk: NDArray[np.uint8], host: NDArray[np.uint8]) -> None:
        flat = chunk.reshape(-1)
        edges = np.linspace(0, flat.size, _COPY_THREADS + 1).astype(int)
        spans = [slice(a, b) for a, b in pairwise(edges)]
        list(self._copiers.map(lambda s: np.copyto(host[s], flat[s]), spans))

    def vector(self, values: NDArray[np.float32]) -> DeviceArray:
        """A small float32 array."""
        return self.memory.upload(np.ascontiguousarray(values, np.float32), "weights")

    def floats(self, tensor: Tensor) -> NDArray[np.float32]:
        """A small tensor (norm, bias, router) as float32 on the host."""
        self.bytes_loaded += tensor.size_bytes
        return tensor.dequantize()

    def _forget(self, raw: NDArray[np.uint8]) -> None:
        """Drop the pages of a copied tensor from this process (they stay in the page cache).

        Only of a mapped file: dropping ordinary memory would zero it.
        """
        if not is_mapped_file(raw):
            return
        page = mmap.PAGESIZE
        begin = -(-raw.ctypes.data // page) * page
        size = (raw.ctypes.data + raw.nbytes - begin) // page * page
        if size > 0:
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_DONTNEED)


def is_mapped_file(array: NDArray[Any]) -> bool:
    """Whether an array is a view of an mmap."""
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)
