"""Loading weights: every row once, the right bytes, in spans of the file; errors come through."""

import ctypes
import mmap
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.backends import cuda_weights
from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_weights import Part, WeightLoader, _Rows, is_mapped_file, spans
from engine.errors import ModelLoadError
from engine.gguf import Tensor
from kernels.arrays import DeviceArray
from kernels.context import DeviceLimits
from kernels.matrix import PackedMatrix, RowPlacement
from tests.unit import fake_cuda
from tests.unit.fake_cuda import FakeCupy

LIMITS = DeviceLimits("sm_90", 132, 232448)
COLUMNS = 64
ROW_BYTES = COLUMNS // 32 * 34
Packed = dict[tuple[int, int, int], bytes]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """A device whose staging is the host's memory, so that what is packed can be looked at."""
    fake = FakeCupy()

    def copy(to: int, source: int, size: int, kind: int, stream: int) -> None:
        ctypes.memmove(to, source, size)

    monkeypatch.setattr(fake.cuda.runtime, "memcpyAsync", copy)
    monkeypatch.setattr("kernels.context.Module", fake_cuda.FakeModule)
    monkeypatch.setattr("kernels.context.cached_cubin", lambda unit, architecture: b"cubin")
    return fake


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Packed:
    """The bytes of each packed row by (matrix, expert, row)."""
    found: Packed = {}

    def pack(_: Any, source: DeviceArray, matrix: PackedMatrix, to: RowPlacement, e: int) -> None:
        rows, row_bytes = source.shape
        for row in range(rows):
            key = (matrix.tiles.pointer, e, (to.first_row + row) * to.stride + to.offset)
            assert key not in found
            found[key] = ctypes.string_at(source.pointer + row * row_bytes, row_bytes)

    monkeypatch.setattr(cuda_weights, "pack_rows", pack)
    return found


def staging(n_bytes: int) -> tuple[NDArray[np.uint8], DeviceArray]:
    memory = np.zeros(n_bytes, np.uint8)
    return memory, DeviceArray(memory.ctypes.data, "u8", (n_bytes,))


def mapped(folder: Path, *sizes: int) -> list[Tensor]:
    """Tensors of so many rows, 32 bytes apart in one mapped file."""
    content = np.random.default_rng(1).integers(0, 256, 1 << 18, np.uint8)
    path = folder / "weights"
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        view = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    tensors, at = [], 32
    for rows in sizes:
        raw = view[at : at + rows * ROW_BYTES].reshape(rows, ROW_BYTES)
        tensors.append(Tensor(f"t{at}", "Q8_0", (rows, COLUMNS), raw))
        at += rows * ROW_BYTES + 32
    return tensors


def load(loader: WeightLoader) -> list[int]:
    told: list[int] = []
    try:
        loader.start()
        loader.finish(lambda loaded, _total: told.append(loaded), 0)
    finally:
        loader.close()
    return told


@pytest.mark.parametrize("in_file", [True, False])
def test_every_row_arrives_once(
    cupy: FakeCupy, packed: Packed, tmp_path: Path, in_file: bool
) -> None:
    tensors = mapped(tmp_path, 70, 3, 40, 40, 96)
    if not in_file:
        tensors = [Tensor(t.name, t.type, t.shape, t.raw.copy()) for t in tensors]
    assert is_mapped_file(tensors[0].raw) == in_file
    memory, array = staging(cuda_weights.N_THREADS * 1024)
    loader = WeightLoader(DevicePool(cupy), LIMITS, array)
    last, small, gate, up, experts = tensors
    plain = [
        (loader.matrix("Q8_0", (Part(t, 0, len(t.raw), RowPlacement()),), 2), t)
        for t in (last, small)
    ]
    halves = (Part(gate, 0, 40, RowPlacement(0, 2, 0)), Part(up, 0, 40, RowPlacement(0, 2, 1)))
    gated = loader.matrix("Q8_0", halves, 2)
    mixture = loader.matrix("Q8_0", (Part(experts, 0, 24, RowPlacement()),), 2, 4)
    told = load(loader)
    for matrix, tensor in plain:
        for row, content in enumerate(tensor.raw):
            assert packed.pop((matrix.tiles.pointer, 0, row)) == content.tobytes()
    for row in range(40):
        for half, tensor in enumerate((gate, up)):
            key = (gated.tiles.pointer, 0, 2 * row + half)
            assert packed.pop(key) == tensor.raw[row].tobytes()
    for row, content in enumerate(experts.raw):
        key = (mixture.tiles.pointer, row // 24, row % 24)
        assert packed.pop(key) == content.tobytes()
    assert packed == {}
    assert told == sorted(told)
    assert told[-1] == sum(tensor.size_bytes for tensor in tensors)
    assert memory.any()


@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.integers(1, 900), st.integers(0, 90_000)), max_size=20
    ),
    st.booleans(),
)
def test_spans_hold_all_rows_and_little_else(
    sizes: list[tuple[int, int, int]], is_mapped: bool
) -> None:
    rows, at = [], 4096
    for n_rows, row_bytes, gap in sizes:
        matrix: Any = SimpleNamespace()
        rows.append(_Rows(at, (n_rows, row_bytes), matrix, RowPlacement(), 0, is_mapped))
        at += n_rows * row_bytes + gap
    groups = list(spans(reversed(rows), 100_000))
    found = [one for group in groups for one in group]
    covered = [(one.address, one.stop) for one in found]
    assert all(before[1] <= after[0] for before, after in pairwise(covered))
    assert sum(stop - start for start, stop in covered) == sum(n * b for n, b, _ in sizes)
    for one in found:
        whole = next(r for r in rows if r.matrix is one.matrix)
        assert one.address == whole.address + one.placement.first_row * whole.shape[1]
    for group in groups:
        assert group[-1].stop - group[0].address <= 100_000
        gaps = [after.address - before.stop for before, after in pairwise(group)]
        assert all(gap <= 64 << 10 for gap in gaps)
        assert is_mapped or len(group) == 1


def test_a_row_that_fits_no_chunk_is_refused(
    cupy: FakeCupy, packed: Packed, tmp_path: Path
) -> None:
    (tensor,) = mapped(tmp_path, 5)
    _, array = staging(cuda_weights.N_THREADS * 256)
    loader = WeightLoader(DevicePool(cupy), LIMITS, array)
    wide = Tensor("wide", "Q8_0", (1, 5 * COLUMNS), tensor.raw.reshape(1, -1))
    loader.matrix("Q8_0", (Part(wide, 0, 1, RowPlacement()),), 1)
    with pytest.raises(ModelLoadError, match="rows of 340 bytes; 256 fit a chunk"):
        load(loader)


def test_what_a_thread_raises_ends_the_load(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise fake_cuda.FakeRuntimeError("cudaErrorIllegalAddress", 700)

    monkeypatch.setattr(cuda_weights, "pack_rows", refuse)
    (tensor,) = mapped(tmp_path, 90)
    _, array = staging(cuda_weights.N_THREADS * 256)
    loader = WeightLoader(DevicePool(cupy), LIMITS, array)
    loader.matrix("Q8_0", (Part(tensor, 0, 90, RowPlacement()),), 1)
    with pytest.raises(fake_cuda.FakeRuntimeError, match="IllegalAddress"):
        load(loader)


def test_small_arrays_go_to_the_device_together(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[int, bytes] = {}
    monkeypatch.setattr(
        cupy.cuda.runtime, "memcpy",
        lambda to, source, size, kind: sent.update({to: ctypes.string_at(source, size)}),
    )  # fmt: skip
    _, array = staging(cuda_weights.N_THREADS * 256)
    loader = WeightLoader(DevicePool(cupy), LIMITS, array)
    values = [np.arange(n, dtype=np.float32) + n for n in (5, 64, 90_000, 1)]
    made = [loader.vector(value) for value in values]
    load(loader)
    assert len(sent) == 3
    for value, device in zip(values, made, strict=True):
        assert device.pointer % 256 == 0
        start = max(at for at in sent if at <= device.pointer)
        at = device.pointer - start
        assert sent[start][at : at + value.nbytes] == value.tobytes()
