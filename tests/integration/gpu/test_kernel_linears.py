"""Embedding, GEMV and GEMM against float64, all weight types, odd shapes, poisoned outputs."""

import numpy as np
import pytest

from engine.backends.cuda_probe_arrays import QUANTIZED, dequantized
from engine.quants import BLOCK_FORMATS
from kernels import elementwise, norm
from kernels.arrays import DeviceArray
from kernels.attention import PAGE_TOKENS, AttentionShape, KvPages
from kernels.context import KernelContext
from kernels.embed import add_position, embed
from kernels.gemm import (
    GemmOutput,
    GroupedGemm,
    gemm,
    gemm_float,
    grouped_gemm,
    many_launch,
)
from kernels.gemm_warpgroup import TILES, WarpgroupTile, has_warpgroups
from kernels.gemv import Gemv, GemvTuning, KeysAhead, NormInput, Segment
from kernels.moe import Routing, combine, route
from tests.integration.gpu.arrays import Arena, random_blocks, relative_error

GEMV_BOUND, GEMM_BOUND, FLOAT_BOUND = 1e-4, 1.5e-3, 2e-6


def k_for(type_name: str, k: int) -> int:
    size = max(BLOCK_FORMATS[type_name].block_size, 4)
    return max(size, k // size * size)


@pytest.mark.parametrize("type_name", list(BLOCK_FORMATS))
@pytest.mark.parametrize("tile_rows", [1, 2, 4])
def test_embedding_is_the_dequantized_row(
    context: KernelContext, type_name: str, tile_rows: int
) -> None:
    rng, arena, k, rows = np.random.default_rng(1), Arena(), k_for(type_name, 800), 37
    raw = random_blocks(rng, type_name, rows, k)
    table = arena.packed(context, type_name, [raw], (rows, k, tile_rows))
    ids = rng.integers(0, rows, 19).astype(np.int32)
    out, array = arena.poisoned((19, k))
    embed(context, out, table, arena.put(ids))
    assert (array.get() == dequantized(type_name, raw)[ids]).all()
    add_position(context, out, table, arena.put(np.array([5], np.int32)))
    want = (dequantized(type_name, raw)[ids] + dequantized(type_name, raw)[5:24]).astype(np.float32)
    assert relative_error(array, want.astype(np.float64)) < 1e-7


@pytest.mark.parametrize("type_name", list(BLOCK_FORMATS))
@pytest.mark.parametrize(("rows", "k", "tuning"), [
    (301, 2880, GemvTuning(1, 8, 2, early_tiles=3)),
    (301, 2880, GemvTuning(1, 8, 2, early_tiles=11)),
    (1153, 896, GemvTuning(2, 16, 1, early_tiles=0)),
    (2002, 512, GemvTuning(4, 12, 2)),
])  # fmt: skip
def test_gemv_equals_float64(
    context: KernelContext, type_name: str, rows: int, k: int, tuning: GemvTuning
) -> None:
    rng, arena, k = np.random.default_rng(2), Arena(), k_for(type_name, k)
    raw = random_blocks(rng, type_name, rows, k)
    matrix = arena.packed(context, type_name, [raw], (rows, k, tuning.tile_rows))
    x, gain, bias = (rng.standard_normal(n).astype(np.float32) for n in (k, k, rows))
    out, array = arena.poisoned((1, rows))
    spec = Gemv(
        (Segment(matrix, out, arena.put(bias)),), arena.put(x[None]), "NORM", "STORE", tuning,
        norm=NormInput(arena.put(gain), 1e-5),
    )  # fmt: skip
    spec.launch(context)
    x64 = x.astype(np.float64)
    normed = x64 / np.sqrt((x64**2).mean() + 1e-5) * gain
    want = dequantized(type_name, raw) @ normed + bias
    assert relative_error(array[0], want) < GEMV_BOUND
    Gemv((Segment(matrix, out),), arena.put(x[None]), "PLAIN", "ADD", tuning).launch(context)
    want += dequantized(type_name, raw) @ x64
    assert relative_error(array[0], want) < GEMV_BOUND


def test_three_matrices_share_one_launch(context: KernelContext) -> None:
    rng, arena, k, tuning = np.random.default_rng(3), Arena(), 896, GemvTuning(1, 9, 1)
    raws = [random_blocks(rng, t, n, k) for t, n in (("Q5_0", 896), ("Q5_0", 128), ("Q8_0", 128))]
    x = rng.standard_normal((1, k)).astype(np.float32)
    segments, wants, arrays = [], [], []
    for raw, type_name in zip(raws, ("Q5_0", "Q5_0", "Q8_0"), strict=True):
        out, array = arena.poisoned((1, raw.shape[0]))
        matrix = arena.packed(context, type_name, [raw], (raw.shape[0], k, 1))
        segments.append(Segment(matrix, out))
        arrays.append(array)
        wants.append(dequantized(type_name, raw) @ x[0].astype(np.float64))
    Gemv(tuple(segments), arena.put(x), "PLAIN", "STORE", tuning).launch(context)
    for array, want in zip(arrays, wants, strict=True):
        assert relative_error(array[0], want) < GEMV_BOUND


def silu_glu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (1 + np.exp(-gate)) * up


def clamped_glu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


@pytest.mark.parametrize(("epilogue", "act"), [("SILU", silu_glu), ("CLAMPED", clamped_glu)])
def test_gated_gemv_and_gemm_join_alternate_rows(context, epilogue, act) -> None:  # type: ignore[no-untyped-def]
    rng, arena, k, rows = np.random.default_rng(4), Arena(), 1280, 3074
    raw = random_blocks(rng, "Q4_K", rows, k)
    matrix = arena.packed(context, "Q4_K", [raw], (rows, k, 2))
    x = rng.standard_normal((3, k)).astype(np.float32)
    both = x.astype(np.float64) @ dequantized("Q4_K", raw).T
    want = act(both[:, ::2], both[:, 1::2])
    out, array = arena.poisoned((1, rows // 2))
    tuning = GemvTuning(2, 16, 1)
    Gemv((Segment(matrix, out),), arena.put(x[:1]), "PLAIN", epilogue, tuning).launch(context)
    assert relative_error(array, want[:1]) < GEMV_BOUND
    half, half_array = arena.poisoned((3, rows // 2), "f2")
    gemm(context, arena.put(x.astype(np.float16)), (GemmOutput(matrix, half),), epilogue)
    assert relative_error(half_array, want) < 2 * GEMM_BOUND


def test_what_is_asked_early_and_spared_l2_change_no_bit(context: KernelContext) -> None:
    rng, arena, k, rows = np.random.default_rng(6), Arena(), 512, 300
    matrix = arena.packed(context, "Q4_K", [random_blocks(rng, "Q4_K", rows, k)], (rows, k, 2))
    x, shape = (
        arena.put(rng.standard_normal((1, k)).astype(np.float32)),
        AttentionShape(4, 2, 64, 1.0),
    )
    page_bytes = 2 * shape.n_kv_heads * PAGE_TOKENS * shape.head_dim * 2
    memory = arena.put(np.zeros((3, page_bytes // 4), np.float32))
    pages = arena.put(np.array([memory.pointer + i * page_bytes for i in range(3)], np.uint64))
    position = arena.put(np.array([2 * PAGE_TOKENS + 5], np.int32))
    ahead = KeysAhead(KvPages(pages, page_bytes, 0), shape, position)
    found = []
    for tuning, keys in (
        (GemvTuning(2, 8, 1), None),
        (GemvTuning(2, 8, 1, evict_first=True), ahead),
        (GemvTuning(2, 12, 2, early_tiles=5), None),
    ):
        out, array = arena.poisoned((1, rows))
        array[:] = 1
        Gemv((Segment(matrix, out),), x, "PLAIN", "ADD", tuning, ahead=keys).launch(context)
        found.append(array.get())
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_logits_epilogue_finds_the_first_best(context: KernelContext) -> None:
    rng, arena, k, rows = np.random.default_rng(5), Arena(), 576, 4099
    raw = random_blocks(rng, "Q8_0", rows, k)
    raw[4000] = raw[17]
    matrix = arena.packed(context, "Q8_0", [raw], (rows, k, 4))
    x = np.asarray(dequantized("Q8_0", raw)[17:18], np.float32)
    grid = context.limits.n_multiprocessors
    out, array = arena.poisoned((1, rows))
    value, values = arena.poisoned((grid,))
    index, indices = arena.poisoned((grid,), "i4")
    gain = arena.put(np.ones(k, np.float32))
    Gemv(
        (Segment(matrix, out),), arena.put(x), "NORM", "LOGITS", GemvTuning(4, 16, 2),
        norm=NormInput(gain, 1e-5), best=(value, index),
    ).launch(context)  # fmt: skip
    logits = array.get()[0]
    assert logits[17] == logits[4000] == logits.max()
    best = min((-v, i) for v, i in zip(values.get(), indices.get(), strict=True))
    assert best == (-logits.max(), 17)


@pytest.mark.parametrize("type_name", QUANTIZED)
@pytest.mark.parametrize(
    ("m", "n", "k", "tile_rows"),
    [
        (1, 130, 512, 2), (13, 257, 2880, 4), (63, 300, 800, 1), (23, 1601, 1024, 2),
        (64, 140, 800, 1), (77, 300, 800, 2), (300, 257, 2880, 4),
    ],
)  # fmt: skip
def test_gemm_equals_float64(
    context: KernelContext, type_name: str, m: int, n: int, k: int, tile_rows: int
) -> None:
    rng, arena, k = np.random.default_rng(6), Arena(), k_for(type_name, k)
    raw = random_blocks(rng, type_name, n, k)
    matrix = arena.packed(context, type_name, [raw], (n, k, tile_rows))
    x = rng.standard_normal((m, k)).astype(np.float16)
    bias = rng.standard_normal(n).astype(np.float32)
    out, array = arena.poisoned((m, n))
    gemm(context, arena.put(x), (GemmOutput(matrix, out, arena.put(bias)),))
    want = x.astype(np.float64) @ dequantized(type_name, raw).T
    assert relative_error(array, want + bias) < GEMM_BOUND
    gemm(context, arena.put(x), (GemmOutput(matrix, out),), "ADD")
    assert relative_error(array, 2 * want + bias) < GEMM_BOUND


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_float_gemm_equals_float64(context: KernelContext, type_name: str) -> None:
    rng, arena, m, n, k = np.random.default_rng(7), Arena(), 67, 35, 100
    raw = random_blocks(rng, type_name, n, k)
    matrix = arena.packed(context, type_name, [raw], (n, k, 4))
    x = rng.standard_normal((m, k)).astype(np.float32)
    out, array = arena.poisoned((m, n))
    gemm_float(context, arena.put(x), matrix, out)
    want = x.astype(np.float64) @ dequantized(type_name, raw).T
    assert relative_error(array, want) < FLOAT_BOUND


def test_a_gemm_row_does_not_depend_on_the_other_rows(context: KernelContext) -> None:
    rng, arena, k, n = np.random.default_rng(8), Arena(), 1024, 640
    matrix = arena.packed(context, "Q6_K", [random_blocks(rng, "Q6_K", n, k)], (n, k, 1))
    x = rng.standard_normal((515, k)).astype(np.float16)
    for rows, begin, end in ((515, 256, 320), (515, 100, 300), (63, 9, 12), (63, 30, 61)):
        whole, whole_array = arena.poisoned((rows, n))
        gemm(context, arena.put(x[:rows]), (GemmOutput(matrix, whole),))
        part, part_array = arena.poisoned((end - begin, n))
        gemm(context, arena.put(x[begin:end]), (GemmOutput(matrix, part),))
        assert (whole_array.get()[begin:end] == part_array.get()).all()


@pytest.mark.parametrize("type_name", QUANTIZED)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: str(tile.tokens))
def test_warpgroups_give_the_same_bits_as_warps(
    context: KernelContext, monkeypatch: pytest.MonkeyPatch, type_name: str, tile: WarpgroupTile
) -> None:
    if not has_warpgroups(context.limits):
        pytest.skip("this device has no warpgroup instructions")
    rng, arena, n, k = np.random.default_rng(14), Arena(), 257, k_for(type_name, 2880)
    raw = random_blocks(rng, type_name, n, k)
    matrix = arena.packed(context, type_name, [raw], (n, k, 2))
    x = rng.standard_normal((300, k)).astype(np.float16)
    seen = []
    for chosen in (lambda limits: False, has_warpgroups):
        many_launch.cache_clear()
        monkeypatch.setattr("kernels.gemm.has_warpgroups", chosen)
        monkeypatch.setattr("kernels.gemm.best_tile", lambda *_: tile)
        out, array = arena.poisoned((300, n))
        gemm(context, arena.put(x), (GemmOutput(matrix, out),))
        seen.append(array.get())
    many_launch.cache_clear()
    assert (
        relative_error(seen[0], x.astype(np.float64) @ dequantized(type_name, raw).T) < GEMM_BOUND
    )
    assert (seen[0] == seen[1]).all()


def moe_want(x, logits, weights, chosen):  # type: ignore[no-untyped-def]
    gate_up, gate_up_bias, down, down_bias = weights
    out = np.zeros_like(x)
    for t, row in enumerate(logits):
        best = np.argsort(-row, kind="stable")[:chosen]
        share = np.exp(row[best] - row[best].max())
        for e, s in zip(best, share / share.sum(), strict=True):
            both = gate_up[e] @ x[t] + gate_up_bias[e]
            out[t] += s * (down[e] @ clamped_glu(both[::2], both[1::2]) + down_bias[e])
    return out


def test_grouped_experts_equal_float64(context: KernelContext) -> None:
    rng, arena = np.random.default_rng(9), Arena()
    tokens, n_experts, chosen, k, hidden = 61, 8, 3, 96, 160
    raw_in = [random_blocks(rng, "MXFP4", 2 * hidden, k) for _ in range(n_experts)]
    raw_out = [random_blocks(rng, "MXFP4", k, hidden) for _ in range(n_experts)]
    gate_up = arena.packed(context, "MXFP4", raw_in, (2 * hidden, k, 2))
    down = arena.packed(context, "MXFP4", raw_out, (k, hidden, 2))
    x = rng.standard_normal((tokens, k)).astype(np.float16)
    logits = rng.standard_normal((tokens, n_experts)).astype(np.float32)
    logits[:, 3] = logits[:, 5]
    biases = [rng.standard_normal((n_experts, n)).astype(np.float32) for n in (2 * hidden, k)]
    n = tokens * chosen
    routing = Routing(
        arena.poisoned((n,), "i4")[0], arena.poisoned((n,))[0], arena.poisoned((n,), "i4")[0],
        arena.poisoned((n_experts + 1,), "i4")[0], n_experts, chosen,
    )  # fmt: skip
    route(context, arena.put(logits), routing)
    h, _ = arena.poisoned((n, hidden), "f2")
    y, _ = arena.poisoned((n, k))
    out, array = arena.poisoned((tokens, k))
    first = GroupedGemm(gate_up, arena.put(biases[0]), routing, tokens, "CLAMPED", "EXPERT_IN")
    grouped_gemm(context, arena.put(x), h, first)
    last = GroupedGemm(down, arena.put(biases[1]), routing, tokens, "STORE", "EXPERT_OUT")
    grouped_gemm(context, h, y, last)
    combine(context, y, out, chosen, add=False)
    weights = (
        [dequantized("MXFP4", r) for r in raw_in], biases[0].astype(np.float64),
        [dequantized("MXFP4", r) for r in raw_out], biases[1].astype(np.float64),
    )  # fmt: skip
    want = moe_want(x.astype(np.float64), logits.astype(np.float64), weights, chosen)
    assert relative_error(array, want) < 2 * GEMM_BOUND


def test_norms_and_elementwise_equal_float64(context: KernelContext) -> None:
    rng, arena = np.random.default_rng(10), Arena()
    x = (rng.standard_normal((7, 333)) * 3 + 1).astype(np.float32)
    w, b = (rng.standard_normal(333).astype(np.float32) for _ in range(2))
    x64 = x.astype(np.float64)
    out, array = arena.poisoned((7, 333))
    half, half_array = arena.poisoned((7, 333), "f2")
    norm.norm(context, arena.put(x), (arena.put(w), None), (out, half), 1e-6)
    want = x64 / np.sqrt((x64**2).mean(1, keepdims=True) + 1e-6) * w
    assert relative_error(array, want) < FLOAT_BOUND
    assert relative_error(half_array, want) < 5e-4
    norm.norm(context, arena.put(x), (arena.put(w), arena.put(b)), (out, None), 1e-6)
    centred = x64 - x64.mean(1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * w + b
    assert relative_error(array, want) < FLOAT_BOUND
    y = rng.standard_normal((7, 333)).astype(np.float32)
    cases = {
        "add": x64 + y,
        "gelu": 0.5 * x64 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x64 + 0.044715 * x64**3))),
        "silu": silu_glu(x64, y.astype(np.float64)),
        "clamped_swiglu": clamped_glu(x64, y.astype(np.float64)),
        "copy": x64,
    }
    for name, want in cases.items():
        second: DeviceArray | None = arena.put(y) if name not in ("gelu", "copy") else None
        elementwise.elementwise(context, name, (arena.put(x), second), (out, None))  # type: ignore[arg-type]
        assert relative_error(array, want) < FLOAT_BOUND, name


def test_every_linear_gives_the_same_bits_fifty_times(context: KernelContext) -> None:
    rng, arena, k, rows = np.random.default_rng(11), Arena(), 2048, 700
    matrix = arena.packed(context, "Q4_K", [random_blocks(rng, "Q4_K", rows, k)], (rows, k, 2))
    x = rng.standard_normal((65, k)).astype(np.float32)
    one, one_array = arena.poisoned((1, rows))
    many, many_array = arena.poisoned((65, rows))
    x1, x16 = arena.put(x[:1]), arena.put(x.astype(np.float16))
    spec = Gemv((Segment(matrix, one),), x1, "PLAIN", "STORE", GemvTuning(2, 16, 2))
    seen = set()
    for _ in range(50):
        spec.launch(context)
        gemm(context, x16, (GemmOutput(matrix, many),))
        seen.add((one_array.get().tobytes(), many_array.get().tobytes()))
    assert len(seen) == 1


def test_gemv_bits_do_not_depend_on_the_tuning(context: KernelContext) -> None:
    rng, arena, k, rows = np.random.default_rng(12), Arena(), 1536, 601
    raw, x = random_blocks(rng, "Q5_K", rows, k), rng.standard_normal((1, k)).astype(np.float32)
    seen = set()
    for tuning in (GemvTuning(1, 8, 1), GemvTuning(2, 16, 2), GemvTuning(4, 5, 3)):
        matrix = arena.packed(context, "Q5_K", [raw], (rows, k, tuning.tile_rows))
        out, array = arena.poisoned((1, rows))
        Gemv((Segment(matrix, out),), arena.put(x), "PLAIN", "STORE", tuning).launch(context)
        seen.add(array.get().tobytes())
    assert len(seen) == 1


def test_three_matrices_share_one_gemm(context: KernelContext) -> None:
    rng, arena, k, m = np.random.default_rng(13), Arena(), 896, 70
    x = rng.standard_normal((m, k)).astype(np.float16)
    outputs, arrays, wants = [], [], []
    for rows in (300, 64, 65):
        raw = random_blocks(rng, "Q5_0", rows, k)
        bias = rng.standard_normal(rows).astype(np.float32)
        out, array = arena.poisoned((m, rows))
        matrix = arena.packed(context, "Q5_0", [raw], (rows, k, 2))
        outputs.append(GemmOutput(matrix, out, arena.put(bias)))
        arrays.append(array)
        wants.append(x.astype(np.float64) @ dequantized("Q5_0", raw).T + bias)
    gemm(context, arena.put(x), tuple(outputs))
    for array, want in zip(arrays, wants, strict=True):
        assert relative_error(array, want) < GEMM_BOUND
