"""RoPE and attention over the paged cache against float64: GQA, windows, sinks, head sizes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.attention import (
    AttentionLayer,
    AttentionShape,
    DecodeTuning,
    KvPages,
    Projections,
    Rotation,
    Splits,
    attention_decode,
    attention_merge,
    attention_prefill,
    rope_append,
    rope_table,
)
from kernels.context import KernelContext
from tests.integration.gpu.arrays import Arena, relative_error

BOUND = 2e-3
TUNINGS = (
    (DecodeTuning(4, 1), 64, 8),
    (DecodeTuning(4, 2), 16, 64),
    (DecodeTuning(8, 2), 128, 8),
    (DecodeTuning(2, 2, 2), 64, 3),
    (DecodeTuning(8, 2, 4), 64, 2),
    (DecodeTuning(4, 2, 8), 16, 8),
    (DecodeTuning(16, 1), 256, 8),
    (DecodeTuning(8, 2, 8), 64, 2),
    (DecodeTuning(2, 1), 512, 1),
    (DecodeTuning(1, 2), 512, 1),
    (DecodeTuning(3, 2, 2), 512, 1),
    (DecodeTuning(1, 3, 2), 160, 2),
)


@dataclass
class Case:
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    sinks: bool
    pairs: str
    tokens: int


CASES = [
    Case(14, 2, 64, 0, False, "half", 133),
    Case(64, 8, 64, 128, True, "half", 300),
    Case(32, 32, 96, 100, False, "half", 200),
    Case(28, 4, 128, 0, False, "half", 97),
    Case(9, 3, 64, 0, False, "adjacent", 65),
    Case(4, 4, 16, 0, False, "none", 64),
    Case(12, 1, 80, 0, True, "adjacent", 70),
]


def rotate(
    x: NDArray[np.float64], case: Case, frequencies: NDArray[np.float64]
) -> NDArray[np.float64]:
    if case.pairs == "none":
        return x
    angle = np.arange(x.shape[0])[:, None, None] * frequencies
    c, s = np.cos(angle) * 1.1, np.sin(angle) * 1.1
    out, n = x.copy(), len(frequencies)
    first, second = (
        (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
        if case.pairs == "adjacent"
        else (slice(0, n), slice(n, 2 * n))
    )
    out[..., first] = x[..., first] * c - x[..., second] * s
    out[..., second] = x[..., second] * c + x[..., first] * s
    return out


def attend(q, k, v, case: Case, sinks) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    tokens, group = q.shape[0], case.heads // case.kv_heads
    out = np.zeros_like(q)
    at = np.arange(tokens)
    seen = at[None, :] <= at[:, None]
    if case.window:
        seen &= at[None, :] > at[:, None] - case.window
    for h in range(case.heads):
        s = q[:, h] @ k[:, h // group].T * case.head_dim**-0.5
        s = np.where(seen, s, -np.inf)
        top = s.max(1, keepdims=True)
        e = np.exp(s - top)
        total = e.sum(1, keepdims=True)
        if sinks is not None:
            total += np.exp(sinks[h] - top)
        out[:, h] = e / total @ v[:, h // group]
    return out


@dataclass
class Setup:
    layer: AttentionLayer
    projections: list[NDArray[np.float32]]
    want: NDArray[np.float64]
    frequencies: NDArray[np.float64]


def make(context: KernelContext, arena: Arena, case: Case, position: int) -> Setup:
    rng = np.random.default_rng(case.tokens)
    hd, n_pairs = case.head_dim, case.head_dim // 2 - 4 * (case.head_dim > 64)
    sizes = (case.heads, case.kv_heads, case.kv_heads)
    x = [rng.standard_normal((case.tokens, n * hd)).astype(np.float32) for n in sizes]
    frequencies = 10000.0 ** -(np.arange(n_pairs) / n_pairs)
    q, k, v = (a.astype(np.float64).reshape(case.tokens, -1, hd) for a in x)
    sinks = rng.standard_normal(case.heads).astype(np.float32) if case.sinks else None
    want = attend(rotate(q, case, frequencies), rotate(k, case, frequencies), v, case, sinks)
    rotation = Rotation("none")
    if case.pairs != "none":
        table, _ = arena.poisoned((512, n_pairs, 2))
        rope_table(context, arena.put(frequencies), table, 1.1)
        rotation = Rotation(case.pairs, table)  # type: ignore[arg-type]
    layer_bytes = 2 * case.kv_heads * 64 * hd * 2
    pool, _ = arena.poisoned((8 * 3 * layer_bytes,), "u1")
    numbers = np.array([5, 0, 7, 2, 3, 1], np.uint64)
    pages = arena.put(np.uint64(pool.pointer) + numbers * np.uint64(3 * layer_bytes))
    shape = AttentionShape(case.heads, case.kv_heads, hd, hd**-0.5, case.window)
    layer = AttentionLayer(
        shape, rotation, KvPages(pages, 3 * layer_bytes, layer_bytes),
        arena.put(np.array([position], np.int32)), arena.put(sinks) if sinks is not None else None,
    )  # fmt: skip
    return Setup(layer, x, want.reshape(case.tokens, -1), frequencies)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prefill_and_decode_equal_float64(context: KernelContext, case: Case) -> None:
    arena = Arena()
    setup = make(context, arena, case, 0)
    q16, _ = arena.poisoned((case.tokens, case.heads * case.head_dim), "f2")
    x = Projections(*(arena.put(a) for a in setup.projections))
    rope_append(context, x, q16, setup.layer)
    out, array = arena.poisoned((case.tokens, case.heads * case.head_dim))
    half, half_array = arena.poisoned((case.tokens, case.heads * case.head_dim), "f2")
    attention_prefill(context, q16, (out, half), setup.layer)
    assert relative_error(array, setup.want) < BOUND
    assert relative_error(half_array, setup.want) < BOUND
    last = case.tokens - 1
    layer = AttentionLayer(
        setup.layer.shape, setup.layer.rotation, setup.layer.cache,
        arena.put(np.array([last], np.int32)), setup.layer.sinks,
    )  # fmt: skip
    one = Projections(*(arena.put(a[last:]) for a in setup.projections))
    for tuning, least_keys, max_splits in TUNINGS:
        if tuning.cluster > 1 and not context.limits.has_clusters:
            continue
        partial, _ = arena.poisoned((case.heads, max_splits, case.head_dim))
        sums, _ = arena.poisoned((case.heads, max_splits, 2))
        splits = Splits(partial, sums, least_keys, max_splits)
        merged, merged_array = arena.poisoned((1, case.heads * case.head_dim))
        attention_decode(context, one, splits, layer, max_splits, tuning)
        attention_merge(context, splits, merged, layer)
        assert relative_error(merged_array, setup.want[last:]) < BOUND, tuning


def test_chunked_prefill_gives_the_bits_of_a_whole_one(context: KernelContext) -> None:
    arena, case = Arena(), CASES[1]
    width = case.heads * case.head_dim
    results = []
    for edges in ((0, 300), (0, 128, 256, 300)):
        setup = make(context, arena, case, 0)
        parts = []
        for begin, end in pairwise(edges):
            position = arena.put(np.array([begin], np.int32))
            layer = AttentionLayer(
                setup.layer.shape,
                setup.layer.rotation,
                setup.layer.cache,
                position,
                setup.layer.sinks,
            )
            x = Projections(*(arena.put(a[begin:end]) for a in setup.projections))
            q16, _ = arena.poisoned((end - begin, width), "f2")
            out, array = arena.poisoned((end - begin, width))
            rope_append(context, x, q16, layer)
            attention_prefill(context, q16, (out, None), layer)
            parts.append(array.get())
        results.append(np.concatenate(parts))
    assert (results[0] == results[1]).all()
