"""RoPE and attention as the kernel probe launches them, beside float64, up to 131,072 positions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.cuda_probe_arrays import Arena, Float64s, Measurement, Output
from kernels.attention import (
    PAGE_TOKENS,
    AttentionLayer,
    AttentionShape,
    DecodeTuning,
    KvPages,
    Projections,
    RopePairs,
    Rotation,
    Splits,
    attention_decode,
    attention_merge,
    attention_prefill,
    rope_append,
    rope_table,
)
from kernels.context import KernelContext, Launcher

MAGNITUDE = 1.1
"""YaRN scales cos and sin; 1 would hide a lost factor."""
FAR = 131_072
_STATIC_BYTES = 12 << 10


SPLITS = (
    (64, 8, DecodeTuning(4, 1)),
    (128, 16, DecodeTuning(8, 1)),
    (256, 8, DecodeTuning(16, 1)),
    (64, 64, DecodeTuning(4, 2)),
    (64, 8, DecodeTuning(4, 2, 4)),
    (1040, 8, DecodeTuning(8, 2, 8)),
    (1056, 8, DecodeTuning(12, 1, 2)),
    (1056, 8, DecodeTuning(2, 2)),
)
"""Least keys and most splits, and the tunings that decoding uses; over one block: clusters."""


@dataclass(frozen=True)
class Case:
    """Heads, window and RoPE of one layer, and how many tokens attend."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int
    sinks: bool
    pairs: RopePairs
    tokens: int
    splits: tuple[tuple[int, int, DecodeTuning], ...] = SPLITS

    @property
    def covers(self) -> tuple[str, ...]:
        """The features that this case shows."""
        told = {
            "mha": self.heads == self.kv_heads,
            "gqa": self.heads > self.kv_heads,
            "window": bool(self.window),
            "sinks": self.sinks,
            f"head_dim {self.head_dim}": True,
            "131072 positions": self.tokens == FAR,
        }
        return tuple(name for name, holds in told.items() if holds)


FAR_SPLITS = (
    (64, 64, DecodeTuning(4, 2)),
    (1056, 8, DecodeTuning(4, 2, 4)),
    *SPLITS[-3:],
)
CASES = (
    Case(14, 2, 64, 0, False, "half", 133),
    Case(64, 8, 64, 128, True, "half", 300),
    Case(32, 32, 96, 100, False, "half", 200),
    Case(28, 4, 128, 0, False, "half", 97),
    Case(9, 3, 64, 0, False, "adjacent", 65),
    Case(4, 4, 16, 0, False, "none", 64),
    Case(12, 1, 80, 0, True, "adjacent", 70),
    Case(2, 1, 64, 0, True, "half", FAR, FAR_SPLITS),
)


@dataclass(frozen=True)
class Prepared:
    """A layer on the device, its projections, and the rotated q, k and v in float64."""

    case: Case
    layer: AttentionLayer
    projections: tuple[NDArray[np.float32], ...]
    rotated: tuple[Float64s, Float64s, Float64s]
    sinks: NDArray[np.float32] | None
    pool: Any


def attention_measurements(
    context: KernelContext, arena: Arena, seed: int
) -> Iterator[Measurement]:
    """Tables and appended rows of RoPE, then prefill and decode of every case."""
    yield _table(arena)
    for pairs in ("adjacent", "half", "none"):
        case = Case(6, 2, 80, 0, False, pairs, PAGE_TOKENS)
        yield _append(arena, prepared(context, arena, case, seed))
    for case in CASES:
        one = prepared(context, arena, case, seed)
        if case.tokens != FAR:
            yield _prefill(arena, one)
        _fill_cache(context, arena, one)
        for least_keys, most, tuning in case.splits:
            if _fits(context, case, tuning):
                yield _decode(arena, one, (least_keys, most), tuning)


def _fits(context: KernelContext, case: Case, tuning: DecodeTuning) -> bool:
    """Whether the device has clusters where they are used, and the shared memory."""
    limits = context.limits
    has_room = tuning.shared_bytes(case.head_dim) + _STATIC_BYTES <= limits.shared_bytes
    return has_room and (tuning.cluster == 1 or limits.has_clusters)


def _table(arena: Arena) -> Measurement:
    frequencies = 10000.0 ** -(np.arange(4) / 4)
    table, array = arena.poisoned((FAR, 4, 2))
    source = arena.put(frequencies)
    angle = np.arange(FAR)[:, None] * frequencies
    want = np.stack([np.cos(angle), np.sin(angle)], -1) * MAGNITUDE
    return Measurement(
        "ROPE", f"table of {FAR} positions", ("table", "yarn"),
        lambda to: rope_table(to, source, table, MAGNITUDE), (Output(array, want),),
    )  # fmt: skip


def _frequencies(case: Case) -> Float64s:
    """Heads above 64 leave their last eight elements as they are."""
    n_pairs = case.head_dim // 2 - 4 * (case.head_dim > 64)
    return np.asarray(10000.0 ** -(np.arange(n_pairs) / n_pairs))


def rotate(x: Float64s, pairs: RopePairs, frequencies: Float64s) -> Float64s:
    """Rows [tokens, heads, head_dim] at positions 0, 1, … after RoPE."""
    if pairs == "none":
        return x
    angle = np.arange(x.shape[0])[:, None, None] * frequencies
    c, s = np.cos(angle) * MAGNITUDE, np.sin(angle) * MAGNITUDE
    out, n = x.copy(), len(frequencies)
    adjacent = (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
    first, second = adjacent if pairs == "adjacent" else (slice(0, n), slice(n, 2 * n))
    out[..., first] = x[..., first] * c - x[..., second] * s
    out[..., second] = x[..., second] * c + x[..., first] * s
    return out


def prepared(context: KernelContext, arena: Arena, case: Case, seed: int) -> Prepared:
    """Random projections, and the second of three layers of a paged cache full of poison."""
    rng, hd = np.random.default_rng([seed, 3, case.tokens]), case.head_dim
    x = tuple(
        rng.standard_normal((case.tokens, n * hd)).astype(np.float32)
        for n in (case.heads, case.kv_heads, case.kv_heads)
    )
    q, k, v = (a.astype(np.float64).reshape(case.tokens, -1, hd) for a in x)
    sinks = rng.standard_normal(case.heads).astype(np.float32) if case.sinks else None
    frequencies = _frequencies(case)
    rotation = Rotation("none")
    if case.pairs != "none":
        table, _ = arena.poisoned((case.tokens, len(frequencies), 2))
        rope_table(context, arena.put(frequencies), table, MAGNITUDE)
        rotation = Rotation(case.pairs, table)
    n_pages = -(-case.tokens // PAGE_TOKENS)
    layer_bytes = 2 * case.kv_heads * PAGE_TOKENS * hd * 2
    pool, array = arena.poisoned((n_pages * 3 * layer_bytes,), "u1")
    order = rng.permutation(n_pages).astype(np.uint64) * np.uint64(3 * layer_bytes)
    pages = arena.put(np.uint64(pool.pointer) + order)
    layer = AttentionLayer(
        AttentionShape(case.heads, case.kv_heads, hd, hd**-0.5, case.window), rotation,
        KvPages(pages, 3 * layer_bytes, layer_bytes), arena.put(np.zeros(1, np.int32)),
        None if sinks is None else arena.put(sinks),
    )  # fmt: skip
    rotated = (rotate(q, case.pairs, frequencies), rotate(k, case.pairs, frequencies), v)
    return Prepared(case, layer, x, rotated, sinks, array)


def attend(one: Prepared, first: int) -> Float64s:
    """Attention of the tokens from `first` on, one row a token."""
    (q, k, v), case = one.rotated, one.case
    at = np.arange(case.tokens)
    seen = at[None, :] <= at[first:, None]
    if case.window:
        seen &= at[None, :] > at[first:, None] - case.window
    out = np.zeros((case.tokens - first, case.heads, case.head_dim))
    for head in range(case.heads):
        group = head * case.kv_heads // case.heads
        scores = np.where(seen, q[first:, head] @ k[:, group].T * case.head_dim**-0.5, -np.inf)
        top = scores.max(1, keepdims=True)
        grown = np.exp(scores - top)
        total = grown.sum(1, keepdims=True)
        if one.sinks is not None:
            total += np.exp(one.sinks[head] - top)
        out[:, head] = grown / total @ v[:, group]
    return out.reshape(case.tokens - first, -1)


def _put(arena: Arena, one: Prepared, first: int) -> Projections:
    return Projections(*(arena.put(a[first:]) for a in one.projections))


def stored(rows: Float64s) -> Float64s:
    """Pages [..., 64, head_dim] as the cache keeps them: kv_page.cuh's order of 16-byte chunks."""
    n_chunks = rows.shape[-1] // 8
    bits = 3 if n_chunks % 8 == 0 else 2 if n_chunks % 4 == 0 else 1
    turn = np.arange(PAGE_TOKENS)[:, None] >> (3 - bits) & ((1 << bits) - 1)
    order = np.arange(n_chunks) ^ turn
    chunks = rows.reshape(*rows.shape[:-1], n_chunks, 8)
    return chunks[..., np.arange(PAGE_TOKENS)[:, None], order, :].reshape(rows.shape)


def _append(arena: Arena, one: Prepared) -> Measurement:
    """One page of tokens: q as halves, and the page's keys and values where they belong."""
    case, (q, k, v) = one.case, one.rotated
    q_out, q_array = arena.poisoned((case.tokens, case.heads * case.head_dim), "f2")
    layer_bytes = one.layer.cache.layer_offset
    held = one.pool[layer_bytes : 2 * layer_bytes].view("f2")
    tiles = np.stack([k, v]).transpose(0, 2, 1, 3)
    outputs = (
        Output(q_array, q.reshape(case.tokens, -1)),
        Output(held.reshape(tiles.shape), stored(tiles)),
    )
    launch = partial(rope_append, x=_put(arena, one, 0), q_out=q_out, layer=one.layer)
    name = f"append {case.tokens} tokens, {case.pairs}"
    return Measurement("ROPE", name, (case.pairs, "cache"), launch, outputs)


def _name(case: Case) -> str:
    return f"{case.tokens} tokens, {case.heads}/{case.kv_heads} heads of {case.head_dim}"


def _prefill(arena: Arena, one: Prepared) -> Measurement:
    case, size = one.case, one.projections[0].shape
    q16, _ = arena.poisoned(size, "f2")
    (out, array), (half, half_array) = arena.poisoned(size), arena.poisoned(size, "f2")
    x, want = _put(arena, one, 0), attend(one, 0)

    def launch(to: Launcher) -> None:
        rope_append(to, x, q16, one.layer)
        attention_prefill(to, q16, (out, half), one.layer)

    outputs = (Output(array, want), Output(half_array, want))
    return Measurement("ATTN", f"prefill {_name(case)}", ("prefill", *case.covers), launch, outputs)


def _fill_cache(context: KernelContext, arena: Arena, one: Prepared) -> None:
    """Keys and values of every token, as prefill leaves them."""
    q16, _ = arena.poisoned(one.projections[0].shape, "f2")
    rope_append(context, _put(arena, one, 0), q16, one.layer)


def _decode(
    arena: Arena, one: Prepared, splitting: tuple[int, int], tuning: DecodeTuning
) -> Measurement:
    """The last token alone, in splits of at least so many keys, at most so many."""
    least_keys, most = splitting
    case, last = one.case, one.case.tokens - 1
    layer = replace(one.layer, position=arena.put(np.array([last], np.int32)))
    splits = Splits(
        arena.poisoned((case.heads, most, case.head_dim))[0],
        arena.poisoned((case.heads, most, 2))[0], least_keys, most,
    )  # fmt: skip
    out, array = arena.poisoned((1, case.heads * case.head_dim))
    x = _put(arena, one, last)

    def launch(to: Launcher) -> None:
        attention_decode(to, x, splits, layer, most, tuning)
        attention_merge(to, splits, out, layer)

    covers = ("decode", *(["clusters"] if tuning.cluster > 1 else []), *case.covers)
    name = f"decode {_name(case)}, splits of {least_keys}, {tuning}"
    return Measurement("ATTN", name, covers, launch, (Output(array, attend(one, last)),))
