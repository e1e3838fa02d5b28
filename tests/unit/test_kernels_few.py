"""Which kernel a linear over few rows takes, and how its work is laid out; no GPU."""

import ctypes
from dataclasses import dataclass, field

import pytest

from kernels.arrays import DeviceArray
from kernels.context import DeviceLimits, Kernel
from kernels.driver import LaunchShape
from kernels.gemm import (
    FEW_TOKENS,
    GemmArguments,
    GemmOutput,
    few_bytes,
    few_tuning,
    gemm,
)
from kernels.matrix import PackedMatrix, matrix_bytes

H200 = DeviceLimits("sm_90", 132, 232_448)
SMALL = DeviceLimits("sm_86", 84, 101_376)


@dataclass
class Recorder:
    limits: DeviceLimits = H200
    launched: list[tuple[str, LaunchShape, GemmArguments]] = field(default_factory=list)

    def launch(self, kernel: Kernel, shape: LaunchShape, arguments: ctypes.Structure) -> None:
        assert isinstance(arguments, GemmArguments)
        self.launched.append((kernel.entry, shape, arguments))


def weights(type_name: str, rows: int, k: int, tile_rows: int = 2) -> PackedMatrix:
    tiles = DeviceArray(4096, "u8", (matrix_bytes(type_name, rows, k, tile_rows),))
    return PackedMatrix(type_name, rows, k, tile_rows, tiles)


def launched(m: int, limits: DeviceLimits = H200) -> tuple[str, LaunchShape, GemmArguments]:
    recorder, rows = Recorder(limits), (40, 33)
    outputs = [GemmOutput(weights("Q8_0", n, 896), DeviceArray(4096, "f32", (m, n))) for n in rows]
    gemm(recorder, DeviceArray(4096, "f16", (m, 896)), tuple(outputs))
    return recorder.launched[0]


@pytest.mark.parametrize("limits", [H200, SMALL], ids=["H200", "small"])
def test_rows_of_a_tail_take_the_kernel_of_few_rows_and_pages_the_other(
    limits: DeviceLimits,
) -> None:
    names = {m: launched(m, limits)[0].startswith("gemm_few_") for m in (1, 31, 63, 64, 65, 500)}
    assert names == {1: True, 31: True, 63: True, 64: False, 65: False, 500: False}
    assert FEW_TOKENS == 64


def test_every_group_of_every_matrix_is_a_job() -> None:
    _, shape, arguments = launched(17)
    assert list(arguments.column_blocks) == [3, 6, 6]
    assert shape.grid == (2 * 6, 1)


@pytest.mark.parametrize(
    ("type_name", "k", "wanted"),
    [
        ("Q5_0", 896, (16, 2)),
        ("Q8_0", 4096, (16, 1)),
        ("Q4_K", 3072, (16, 1)),
        ("Q4_K", 8192, (8, 1)),
        ("Q6_K", 8192, None),
    ],
)
def test_the_first_tuning_that_fits_is_taken(
    type_name: str, k: int, wanted: tuple[int, int] | None
) -> None:
    found = few_tuning(H200, weights(type_name, 64, k), "DENSE")
    assert (found and (found.rows, found.blocks)) == wanted


@pytest.mark.parametrize("limits", [H200, SMALL], ids=["H200", "small"])
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "MXFP4"])
def test_a_tuning_fits_the_device(limits: DeviceLimits, type_name: str) -> None:
    for k in (256, 1024, 2816, 4096, 8192, 16384):
        matrix = weights(type_name, 64, k)
        for grouping in ("DENSE", "EXPERT_IN"):
            found = few_tuning(limits, matrix, grouping)
            if found:
                size = sum(few_bytes(matrix, found.rows, found.slots))
                assert size * found.blocks <= max(limits.shared_bytes, 228 << 10)
                assert size <= limits.shared_bytes
