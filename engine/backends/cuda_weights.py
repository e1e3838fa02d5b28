"""Weights on the device: spans of the file through pinned chunks into packed tiles, overlapped.

What a model needs is first noted, then copied in the file's order by threads beside the rest of the
load: a span is one copy to the host's chunk, one to the device's, and a launch for each tensor.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import Progress
from engine.backends.cuda_memory import ALIGNMENT, DevicePool
from engine.errors import ModelLoadError
from engine.gguf import Tensor
from kernels.arrays import DeviceArray
from kernels.context import DeviceLimits, KernelContext
from kernels.matrix import PackedMatrix, RowPlacement, matrix_bytes, pack_kernel, pack_rows

CHUNK_BYTES = 16 << 20
N_THREADS = 2
_VECTOR_BLOCK_BYTES = 256 << 10
_LARGEST_GAP_BYTES = 64 << 10
_MADV_DONTNEED = 4
_HOST_TO_DEVICE = 1


@dataclass(frozen=True)
class Part:
    """Rows [start, stop) of a tensor (of each expert's matrix) and where they go."""

    tensor: Tensor
    start: int
    stop: int
    placement: RowPlacement


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows in the host's memory and the matrix that they are packed into."""

    address: int
    shape: tuple[int, int]
    matrix: PackedMatrix
    placement: RowPlacement
    expert: int
    is_mapped: bool

    @property
    def stop(self) -> int:
        """The address after the last row."""
        return self.address + self.shape[0] * self.shape[1]

    def cut(self, n_rows: int) -> "tuple[_Rows, _Rows | None]":
        """The first rows and the others."""
        rows, row_bytes = self.shape
        if n_rows >= rows:
            return self, None
        to = self.placement
        later = RowPlacement(to.first_row + n_rows, to.stride, to.offset)
        at, shape = self.address + n_rows * row_bytes, (rows - n_rows, row_bytes)
        rest = replace(self, address=at, shape=shape, placement=later)
        return replace(self, shape=(n_rows, row_bytes)), rest


@dataclass
class _Buffer:
    """A pinned host chunk, its device twin, and the event after which both may be reused."""

    host: NDArray[np.uint8]
    device: int
    done: Any


@dataclass
class _VectorBlock:
    """Small arrays that go to the device together."""

    host: NDArray[np.uint8]
    device: int
    used_bytes: int = 0


def spans(rows: Iterable[_Rows], chunk_bytes: int) -> Iterator[list[_Rows]]:
    """Rows by their place, cut and grouped so that a group lies within `chunk_bytes`.

    Only rows of a mapped file share a group: between others lies memory of someone else.
    """
    group: list[_Rows] = []
    waiting = sorted(rows, key=lambda one: one.address, reverse=True)
    while waiting:
        one = waiting.pop()
        if one.shape[1] > chunk_bytes:
            raise ModelLoadError(f"rows of {one.shape[1]} bytes; {chunk_bytes} fit a chunk")
        if group and not _continues(group[-1], one):
            yield group
            group = []
        start = group[0].address if group else one.address
        n_rows = (start + chunk_bytes - one.address) // one.shape[1]
        if n_rows < 1:
            yield group
            group = []
            n_rows = chunk_bytes // one.shape[1]
        first, rest = one.cut(n_rows)
        group.append(first)
        if rest:
            waiting.append(rest)
    if group:
        yield group


def _continues(before: _Rows, after: _Rows) -> bool:
    gap_bytes = after.address - before.stop
    return before.is_mapped and after.is_mapped and 0 <= gap_bytes <= _LARGEST_GAP_BYTES


@dataclass
class WeightLoader:
    """Copies tensors to the device through `staging` u8[n], which nothing else uses meanwhile.

    It has a stream of its own, so that others can be captured beside it.
    """

    memory: DevicePool
    limits: DeviceLimits
    staging: DeviceArray
    bytes_loaded: int = 0
    _rows: list[_Rows] = field(default_factory=list)
    _blocks: list[_VectorBlock] = field(default_factory=list)
    _free: list[_Buffer] = field(default_factory=list)
    _loads: list["Future[int]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the stream, the kernels' context and the threads, each on this device."""
        cuda = self.memory.cupy.cuda
        self._stream = cuda.Stream(non_blocking=True)
        self._context = KernelContext(self.limits, self._stream.ptr)
        self._chunk_bytes = min(
            CHUNK_BYTES, self.staging.size_bytes // N_THREADS // ALIGNMENT * ALIGNMENT
        )
        self._threads = ThreadPoolExecutor(
            N_THREADS, "weights", cuda.runtime.setDevice, (cuda.runtime.getDevice(),)
        )

    def start(self) -> None:
        """Begin to copy all that was noted."""
        for block in self._blocks:
            self._send(block)
        kernels = {pack_kernel(rows.matrix.type) for rows in self._rows}
        self._context.prepare(kernels)
        submit = self._threads.submit
        self._loads = [submit(self._add_buffer, turn) for turn in range(N_THREADS)]
        self._loads += [submit(self._load, one) for one in spans(self._rows, self._chunk_bytes)]

    def _add_buffer(self, turn: int) -> int:
        """Take a chunk; as many spans are copied at once as threads took one."""
        cuda = self.memory.cupy.cuda
        pinned = cuda.alloc_pinned_memory(self._chunk_bytes)
        host = np.frombuffer(pinned, np.uint8, self._chunk_bytes)
        device = self.staging.pointer + turn * self._chunk_bytes
        self._free.append(_Buffer(host, device, cuda.Event(disable_timing=True)))
        return 0

    def finish(self, progress: Progress, bytes_total: int) -> None:
        """Wait for the copies and tell of them; raises what they raised."""
        for load in self._loads:
            self.bytes_loaded += load.result()
            progress(self.bytes_loaded, bytes_total)
        self._stream.synchronize()

    def close(self) -> None:
        """Stop, and give the chunks back."""
        self._threads.shutdown(cancel_futures=True)
        self._stream.synchronize()
        self._context.close()
        self._free.clear()
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
            self._rows += _rows_of(part, matrix)
        return matrix

    def _load(self, group: list[_Rows]) -> int:
        """Copy and pack one span; returns the bytes of its rows."""
        buffer = self._free.pop()
        buffer.done.synchronize()
        start, size_bytes = group[0].address, group[-1].stop - group[0].address
        ctypes.memmove(buffer.host.ctypes.data, start, size_bytes)
        if group[0].is_mapped:
            _forget(start, size_bytes)
        self.memory.cupy.cuda.runtime.memcpyAsync(
            buffer.device, buffer.host.ctypes.data, size_bytes, _HOST_TO_DEVICE, self._stream.ptr
        )
        for rows in group:
            source = DeviceArray(buffer.device + rows.address - start, "u8", rows.shape)
            pack_rows(self._context, source, rows.matrix, rows.placement, rows.expert)
        buffer.done.record(self._stream)
        self._free.append(buffer)
        return sum(rows.shape[0] * rows.shape[1] for rows in group)

    def vector(self, values: NDArray[np.float32]) -> DeviceArray:
        """A small float32 array, on the device once started."""
        values = np.ascontiguousarray(values, np.float32)
        block = self._block_for(values.nbytes)
        array = DeviceArray(block.device + block.used_bytes, "f32", values.shape)
        block.host[block.used_bytes :][: values.nbytes] = values.reshape(-1).view(np.uint8)
        block.used_bytes += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        return array

    def _block_for(self, size_bytes: int) -> _VectorBlock:
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.used_bytes + size_bytes > last.host.size:
            size_bytes = max(size_bytes, _VECTOR_BLOCK_BYTES)
            last = _VectorBlock(np.zeros(size_bytes, np.uint8), self.memory.keep(size_bytes))
            self._blocks.append(last)
        return last

    def _send(self, block: _VectorBlock) -> None:
        self.memory.write(DeviceArray(block.device, "u8", block.host.shape), block.host)

    def floats(self, tensor: Tensor) -> NDArray[np.float32]:
        """A small tensor (norm, bias, router) as float32 on the host."""
        self.bytes_loaded += tensor.size_bytes
        return tensor.dequantize()


def _rows_of(part: Part, matrix: PackedMatrix) -> Iterator[_Rows]:
    raw = part.tensor.raw
    address, row_bytes, is_mapped = raw.ctypes.data, raw.shape[1], is_mapped_file(raw)
    tensor_rows = raw.shape[0] // matrix.n_experts
    shape = (part.stop - part.start, row_bytes)
    for expert in range(matrix.n_experts):
        first = address + (expert * tensor_rows + part.start) * row_bytes
        yield _Rows(first, shape, matrix, part.placement, expert, is_mapped)


def _forget(start: int, size_bytes: int) -> None:
    """Drop a mapped file's copied pages from this process (they stay in the page cache).

    Only of a mapped file: dropping ordinary memory would zero it.
    """
    page = mmap.PAGESIZE
    begin = -(-start // page) * page
    whole = (start + size_bytes - begin) // page * page
    if whole > 0:
        _LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), _MADV_DONTNEED)


_LIBC = ctypes.CDLL(None)


def is_mapped_file(array: NDArray[Any]) -> bool:
    """Whether an array is a view of an mmap."""
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)
