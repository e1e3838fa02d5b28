import ctypes
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from engine.quants import BLOCK_FORMATS
from kernels import attention, elementwise, embed, gemm, gemv, matrix, moe, norm, sample
from kernels.arrays import DeviceArray
from kernels.context import DeviceLimits, Kernel
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.matrix import TILE_FORMATS, PackedMatrix, matrix_bytes, tile_bytes


@dataclass
class Recorder:
    limits: DeviceLimits = field(default_factory=lambda: DeviceLimits("sm_90", 132, 232448))
    launched: list[tuple[Kernel, LaunchShape]] = field(default_factory=list)

    def launch(self, kernel: Kernel, shape: LaunchShape, arguments: ctypes.Structure) -> None:
        self.launched.append((kernel, shape))


def f32(*shape: int) -> DeviceArray:
    return DeviceArray(4096, "f32", shape)


def f16(*shape: int) -> DeviceArray:
    return DeviceArray(4096, "f16", shape)


def i32(*shape: int) -> DeviceArray:
    return DeviceArray(4096, "i32", shape)


def weights(type_name: str, rows: int, k: int, tile_rows: int = 2, n: int = 1) -> PackedMatrix:
    size = matrix_bytes(type_name, rows, k, tile_rows) * n
    return PackedMatrix(type_name, rows, k, tile_rows, DeviceArray(4096, "u8", (size,)), n)


def linear(**changes: object) -> gemv.Gemv:
    m = weights("Q4_K", 64, 512)
    parts = {
        "segments": (gemv.Segment(m, f32(1, 64)),), "x": f32(1, 512), "prologue": "PLAIN",
        "epilogue": "STORE", "tuning": gemv.GemvTuning(2, 4, 1),
    }  # fmt: skip
    return gemv.Gemv(**{**parts, **changes})  # type: ignore[arg-type]


def keys_ahead(position: DeviceArray) -> gemv.KeysAhead:
    shape = attention.AttentionShape(4, 2, 64, 1.0, 100)
    pages = attention.KvPages(DeviceArray(4096, "u64", (3,)), 1 << 20, 1 << 16)
    return gemv.KeysAhead(pages, shape, position)


# ruff: noqa: E501
BAD_CALLS: dict[str, tuple[str, Callable[[Recorder], object]]] = {
    "norm of the wrong width": (
        "weight", lambda r: norm.norm(r, f32(3, 8), (f32(9), None), (f32(3, 8), None), 1e-5)),
    "norm without an output": (
        "out", lambda r: norm.norm(r, f32(3, 8), (f32(8), None), (None, None), 1e-5)),
    "norm of halves": (
        "x: wanted dtype f32", lambda r: norm.norm(r, f16(3, 8), (f32(8), None), (f32(3, 8), None), 0)),
    "add of one operand": (
        "add", lambda r: elementwise.elementwise(r, "add", (f32(2, 8), None), (f32(2, 8), None))),
    "gelu of two operands": (
        "gelu", lambda r: elementwise.elementwise(r, "gelu", (f32(2, 8), f32(2, 8)), (f32(2, 8), None))),
    "embedding ids of the wrong count": (
        "ids", lambda r: embed.embed(r, f32(3, 512), weights("Q4_K", 9, 512), i32(4))),
    "embedding into the wrong width": (
        "out", lambda r: embed.embed(r, f32(3, 511), weights("Q4_K", 9, 512), i32(3))),
    "gemm of floats": (
        "x", lambda r: gemm.gemm(r, f32(3, 512), (gemm.GemmOutput(weights("Q4_K", 64, 512), f32(3, 64)),))),
    "gemm into too few columns": (
        "out", lambda r: gemm.gemm(r, f16(3, 512), (gemm.GemmOutput(weights("Q4_K", 64, 512), f32(3, 63)),))),
    "gemm of unquantized weights": (
        "gemm takes", lambda r: gemm.gemm(r, f16(3, 512), (gemm.GemmOutput(weights("F32", 64, 512), f32(3, 64)),))),
    "float gemm of quantized weights": (
        "gemm_float", lambda r: gemm.gemm_float(r, f32(3, 512), weights("Q4_K", 64, 512), f32(3, 64))),
    "odd gate and up rows": (
        "alternate", lambda r: gemm.gemm(r, f16(3, 512), (gemm.GemmOutput(weights("Q4_K", 63, 512), f16(3, 31)),), "SILU")),
    "gemv over the wrong width": ("x", lambda r: linear(x=f32(1, 511))),
    "gemv norm without a weight": ("norm", lambda r: linear(prologue="NORM")),
    "gemv into the wrong rows": (
        "out", lambda r: linear(segments=(gemv.Segment(weights("Q4_K", 64, 512), f32(1, 65)),))),
    "gemv that stores and brings keys": ("ahead", lambda r: linear(ahead=keys_ahead(i32(1)))),
    "gemv that brings keys of two positions": (
        "position", lambda r: linear(epilogue="ADD", ahead=keys_ahead(i32(2))).launch(r)),
    "gemv tiles of another height": ("tile_rows", lambda r: linear(tuning=gemv.GemvTuning(4, 4, 1))),
    "gemv past shared memory": (
        "shared memory", lambda r: linear(tuning=gemv.GemvTuning(2, 24, 64)).launch(r)),
    "heads that do not divide": ("kv heads", lambda r: attention.AttentionShape(7, 2, 64, 1.0)),
    "a head size without a kernel": ("head_dim", lambda r: attention.AttentionShape(4, 2, 72, 1.0)),
    "splits that cut a step": (
        "least_keys", lambda r: attention.Splits(f32(4, 8, 64), f32(4, 8, 2), 100, 8).pointers(
            attention.AttentionShape(4, 2, 64, 1.0))),
    "more experts chosen than there are": (
        "experts", lambda r: moe.route(r, f32(5, 4), moe.Routing(i32(25), f32(25), i32(25), i32(5), 4, 5))),
    "packing rows past the matrix": (
        "source", lambda r: matrix.pack_rows(
            r, DeviceArray(4096, "u8", (9, 288)), weights("Q4_K", 8, 512), matrix.RowPlacement())),
    "packing rows of the wrong size": (
        "source", lambda r: matrix.pack_rows(
            r, DeviceArray(4096, "u8", (8, 287)), weights("Q4_K", 8, 512), matrix.RowPlacement())),
    "an unknown weight type": ("Q2_K", lambda r: weights("Q2_K", 8, 512)),
    "rows that are no whole blocks": ("Q4_K", lambda r: weights("Q4_K", 8, 500)),
    "memory too small for the tiles": (
        "tiles", lambda r: PackedMatrix("Q8_0", 8, 64, 2, DeviceArray(4096, "u8", (10,)))),
    "an address that is not aligned": (
        "address", lambda r: embed.add_position(
            r, DeviceArray(4097, "f32", (3, 512)), weights("Q4_K", 9, 512), i32(1))),
    "sampling over another vocabulary": (
        "seen", lambda r: sample.Sampler(
            f32(1, 100), (f32(4), i32(4)), i32(3), i32(7), i32(3), DeviceArray(4096, "u64", (4,))
        ).sample(r)),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD_CALLS))
def test_a_launcher_refuses(case: str) -> None:
    words, call = BAD_CALLS[case]
    recorder = Recorder()
    with pytest.raises(KernelArgumentError, match=words) as raised:
        call(recorder)
    assert "\n" not in str(raised.value)
    assert recorder.launched == []


def test_good_calls_are_launched_with_a_block_for_each_row() -> None:
    recorder = Recorder()
    norm.norm(recorder, f32(3, 8), (f32(8), None), (f32(3, 8), f16(3, 8)), 1e-5)
    linear().launch(recorder)
    assert [kernel.entry.split("_")[0] for kernel, _ in recorder.launched] == ["rms", "gemv"]
    assert [shape.grid[0] for _, shape in recorder.launched] == [3, 132]


@pytest.mark.parametrize("module", [attention, elementwise, embed, gemm, gemv, matrix, moe, norm])
def test_every_public_launcher_is_documented_and_typed(module: object) -> None:
    for name, member in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("_") or member.__module__ != getattr(module, "__name__", ""):
            continue
        assert member.__doc__, name
        signature = inspect.signature(member)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)


@pytest.mark.parametrize("type_name", list(BLOCK_FORMATS))
def test_packing_keeps_the_size_of_the_file(type_name: str) -> None:
    form = BLOCK_FORMATS[type_name]
    assert tile_bytes(type_name, 4, 2048) == -(-4 * form.row_bytes(2048) // 16) * 16
    assert (TILE_FORMATS[type_name].block_size, TILE_FORMATS[type_name].block_bytes) == (
        form.block_size, form.block_bytes,
    )  # fmt: skip


def test_columns_and_rows_are_views_within_bounds() -> None:
    view = f32(4, 10).columns(2, 6).rows(1, 3)
    assert (view.pointer, view.shape, view.stride) == (4096 + 4 * (10 + 2), (2, 4), 10)
    for bad in (lambda: f32(4, 10).columns(2, 11), lambda: f32(4, 10).rows(3, 5)):
        with pytest.raises(KernelArgumentError):
            bad()


def test_keys_brought_ahead_are_bounded_by_what_l2_holds() -> None:
    ahead = keys_ahead(i32(1)).structure()
    assert (ahead.cache.pages, ahead.cache.layer_offset, ahead.window) == (4096, 1 << 16, 100)
    assert ahead.most_chunks * 4096 == 26 << 20


def test_a_tuning_that_spares_l2_is_a_kernel_of_its_own() -> None:
    sparing = linear(tuning=gemv.GemvTuning(2, 4, 1, evict_first=True)).kernel
    assert sparing.entry.endswith("_1")
    assert sparing != linear().kernel


@pytest.mark.parametrize("key", list(gemv.TUNED))
def test_measured_tunings_fit_shared_memory(key: tuple[str, int, int]) -> None:
    type_name, _, k = key
    tuning = gemv.TUNED[key]
    slot = tile_bytes(type_name, tuning.tile_rows, k)
    size = gemv.shared_bytes(tuning, slot, gemv.staged_bytes(type_name, k))
    assert max(size, tuning.least_shared_bytes) <= gemv.TUNED_SHARED_BYTES
