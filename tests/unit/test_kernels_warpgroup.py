"""Which devices and tiles the warpgroup linear takes, and its machine code; no GPU."""

import pytest

from kernels.arrays import DeviceArray
from kernels.compile import compile_unit
from kernels.context import DeviceLimits, KernelContext
from kernels.gemm import GemmOutput, GroupedGemm, gemm, grouped_gemm, many_launch
from kernels.gemm_warpgroup import SHARED_BYTES, TILES, best_tile, has_warpgroups, warpgroup_kernel
from kernels.matrix import PackedMatrix
from kernels.moe import Routing
from tests.unit.test_kernels_few import H200, SMALL, Recorder, weights

A100 = DeviceLimits("sm_80", 108, 166_912)
BLACKWELL = DeviceLimits("sm_100", 148, 232_448)
LITTLE_MEMORY = DeviceLimits("sm_90", 132, 101_376)


def dense(limits: DeviceLimits, m: int, rows: tuple[int, ...]) -> Recorder:
    recorder = Recorder(limits)
    outputs = [GemmOutput(weights("Q4_K", n, 512), DeviceArray(4096, "f32", (m, n))) for n in rows]
    gemm(recorder, DeviceArray(4096, "f16", (m, 512)), tuple(outputs), few=False)
    return recorder


@pytest.mark.parametrize("limits", [A100, SMALL, BLACKWELL, LITTLE_MEMORY])
def test_other_devices_keep_the_kernel_they_had(limits: DeviceLimits) -> None:
    assert not has_warpgroups(limits)
    ((name, shape, _),) = dense(limits, 300, (256,)).launched
    assert name == "gemm_Q4_K_STORE_DENSE_128"
    assert (shape.grid, shape.block) == ((3, 2), 256)


@pytest.mark.parametrize("m", [1, 64, 300, 4096])
@pytest.mark.parametrize("rows", [(130,), (9216,), (896, 128, 128)])
def test_every_token_and_column_has_a_block(m: int, rows: tuple[int, ...]) -> None:
    ((name, shape, arguments),) = dense(H200, m, rows).launched
    (tile,) = [t for t in TILES if name == f"gemm_warpgroup_Q4_K_STORE_DENSE_{t.tokens}"]
    columns = sum(-(-n // 128) for n in rows)
    assert shape.grid == (-(-m // tile.tokens), columns)
    assert (shape.block, shape.shared_bytes) == (tile.threads, SHARED_BYTES)
    assert arguments.column_blocks[2] == columns


@pytest.mark.parametrize("limits", [H200, A100])
@pytest.mark.parametrize("n", [3072, 16384])
def test_one_number_of_rows_compiles_what_any_other_takes(limits: DeviceLimits, n: int) -> None:
    context = KernelContext(limits)
    output = GemmOutput(weights("Q4_K", n, 512), DeviceArray(4096, "f32", (1, n)))
    with context.recording() as launched:
        gemm(context, DeviceArray(4096, "f16", (1, 512)), (output,), few=False)
    form, columns = ("Q4_K", "STORE", "DENSE"), -(-n // 128)
    taken = {many_launch(limits, form, (m, 0), columns)[0] for m in range(1, 4097)}
    (kernel,) = launched
    assert taken <= {kernel, *kernel.others}
    assert len(taken) > 1


@pytest.mark.parametrize("n_tokens", [64, 4096])
def test_grouped_experts_take_it_too(n_tokens: int) -> None:
    recorder, entries, n_experts = Recorder(), 2 * n_tokens, 8
    one = weights("MXFP4", 256, 512)
    tiles = DeviceArray(4096, "u8", (one.expert_bytes * n_experts,))
    matrix = PackedMatrix("MXFP4", 256, 512, 2, tiles, n_experts)
    chosen, share = DeviceArray(4096, "i32", (entries,)), DeviceArray(4096, "f32", (entries,))
    first = DeviceArray(4096, "i32", (n_experts + 1,))
    routing = Routing(chosen, share, chosen, first, n_experts, 2)
    bias = DeviceArray(4096, "f32", (n_experts, 256))
    spec = GroupedGemm(matrix, bias, routing, n_tokens, "CLAMPED", "EXPERT_IN")
    x, out = DeviceArray(4096, "f16", (n_tokens, 512)), DeviceArray(4096, "f16", (entries, 128))
    grouped_gemm(recorder, x, out, spec)
    ((name, shape, _),) = recorder.launched
    (tile,) = [t for t in TILES if name == f"gemm_warpgroup_MXFP4_CLAMPED_EXPERT_IN_{t.tokens}"]
    assert shape.grid == (min(entries, entries // tile.tokens + n_experts), 2)


def test_few_rows_take_small_tiles_and_many_the_largest() -> None:
    def tile(m: int, columns: int) -> int:
        return best_tile(H200, tuple(-(-m // t.tokens) for t in TILES), columns).tokens

    assert tile(64, 24) == 64
    assert tile(4096, 72) == tile(4096, 24) == 256


def test_it_is_hoppers_own_machine_code() -> None:
    unit = warpgroup_kernel(("Q8_0", "STORE", "DENSE"), TILES[-1]).unit
    hopper, other = compile_unit(unit, "sm_90"), compile_unit(unit, "sm_100")
    assert b"sm_90a" in hopper
    assert len(other) < len(hopper) / 2  # one instruction that stops the kernel
