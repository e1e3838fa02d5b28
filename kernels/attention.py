"""Launchers of rope.cu, attention_prefill.cu and attention_decode.cu over the paged KV cache."""

import ctypes
from dataclasses import dataclass
from typing import Literal

from kernels.arrays import DeviceArray, require
from kernels.context import DeviceLimits, Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.structure import FLOAT, INT, POINTER, KvCacheStructure, fields

PAGE_TOKENS = 64
MAX_HEADS_A_BLOCK = 8
MAX_SPLITS = 256
STEP_KEYS = 16
_WARPS_A_MULTIPROCESSOR = 16
RopePairs = Literal["none", "adjacent", "half"]
_PAIRS = {"none": "NO_ROPE", "adjacent": "ADJACENT", "half": "HALF"}


@dataclass(frozen=True)
class AttentionShape:
    """Heads of one attention layer; window 0 = all keys."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0

    def __post_init__(self) -> None:
        """Refuse what the kernels cannot do."""
        if self.n_heads % self.n_kv_heads:
            raise KernelArgumentError(f"{self.n_heads} heads over {self.n_kv_heads} kv heads")
        if self.head_dim % 16 or not 16 <= self.head_dim <= 128:
            raise KernelArgumentError(
                f"head_dim: wanted a multiple of 16 up to 128, got {self.head_dim}"
            )

    @property
    def heads_a_block(self) -> int:
        """Query heads that share a block in decoding: the largest divisor of a group up to 8."""
        group = self.n_heads // self.n_kv_heads
        return max(n for n in range(1, MAX_HEADS_A_BLOCK + 1) if group % n == 0)


@dataclass(frozen=True)
class KvPages:
    """A sequence's pages of one layer: their addresses `pages` u64[n], sizes in bytes."""

    pages: DeviceArray
    page_bytes: int
    layer_offset: int

    def structure(self, shape: AttentionShape) -> KvCacheStructure:
        """The kernel's view; raises KernelArgumentError where a layer does not fit a page."""
        layer = 2 * shape.n_kv_heads * PAGE_TOKENS * shape.head_dim * 2
        if self.layer_offset + layer > self.page_bytes:
            raise KernelArgumentError(f"layer at {self.layer_offset} ends past {self.page_bytes}")
        return KvCacheStructure(
            require("pages", self.pages, "u64", (None,)), self.layer_offset,
            shape.n_kv_heads, shape.head_dim,
        )  # fmt: skip


@dataclass(frozen=True)
class Rotation:
    """RoPE of a layer: `table` f32[positions, n_pairs, 2] (cos, sin), or pairs "none"."""

    pairs: RopePairs
    table: DeviceArray | None = None

    @property
    def pointer(self) -> int:
        """The table's address, 0 without RoPE."""
        if self.table is None:
            return 0
        return require("table", self.table, "f32", (None, None, 2))

    @property
    def n_pairs(self) -> int:
        """Rotated pairs of a head."""
        return 0 if self.table is None else self.table.shape[1]


class RopeTableArguments(ctypes.Structure):
    """rope.cu: RopeTableArgs."""

    _fields_ = [
        *fields(POINTER, "inverse_frequencies table"),
        *fields(INT, "positions n_pairs"),
        *fields(FLOAT, "magnitude"),
    ]


class RopeAppendArguments(ctypes.Structure):
    """rope.cu: RopeAppendArgs."""

    _fields_ = [
        *fields(POINTER, "q k v q_out table position"),
        ("cache", KvCacheStructure),
        *fields(INT, "q_stride k_stride v_stride n_heads n_pairs"),
    ]


class AttentionPrefillArguments(ctypes.Structure):
    """attention_prefill.cu: AttentionPrefillArgs."""

    _fields_ = [
        *fields(POINTER, "q out half_out sinks position"),
        ("cache", KvCacheStructure),
        *fields(INT, "tokens n_heads window"),
        *fields(FLOAT, "scale"),
    ]


class AttentionDecodeArguments(ctypes.Structure):
    """attention_decode.cu: AttentionDecodeArgs."""

    _fields_ = [
        *fields(POINTER, "q k v out sums table position"),
        ("cache", KvCacheStructure),
        *fields(INT, "n_pairs window least_keys max_splits groups"),
        *fields(FLOAT, "scale"),
    ]


class AttentionMergeArguments(ctypes.Structure):
    """attention_decode.cu: AttentionMergeArgs."""

    _fields_ = [
        *fields(POINTER, "partial sums sinks position out"),
        *fields(INT, "head_dim window least_keys max_splits"),
    ]


def rope_table(
    launcher: Launcher, inverse_frequencies: DeviceArray, table: DeviceArray, magnitude: float
) -> None:
    """Table f32[positions, n, 2] = (cos, sin)(p · inverse_frequencies f64[n]) · magnitude."""
    positions, n_pairs, _ = table.shape
    arguments = RopeTableArguments(
        require("inverse_frequencies", inverse_frequencies, "f64", (n_pairs,)),
        require("table", table, "f32", (positions, n_pairs, 2)),
        positions, n_pairs, magnitude,
    )  # fmt: skip
    shape = LaunchShape((-(-positions * n_pairs // 256), 1), 256)
    launcher.launch(Kernel("rope.cu", "rope_table"), shape, arguments)


@dataclass(frozen=True)
class Projections:
    """q f32[tokens, n_heads · head_dim], k and v f32[tokens, n_kv_heads · head_dim]."""

    q: DeviceArray
    k: DeviceArray
    v: DeviceArray

    def pointers(self, shape: AttentionShape) -> tuple[int, int, int]:
        """Addresses of q, k and v; raises KernelArgumentError."""
        tokens = self.q.shape[0]
        width = shape.n_kv_heads * shape.head_dim
        return (
            require("q", self.q, "f32", (tokens, shape.n_heads * shape.head_dim), strided=True),
            require("k", self.k, "f32", (tokens, width), strided=True),
            require("v", self.v, "f32", (tokens, width), strided=True),
        )


@dataclass(frozen=True)
class AttentionLayer:
    """All that stays the same for one attention layer of one sequence; position i32[1]."""

    shape: AttentionShape
    rotation: Rotation
    cache: KvPages
    position: DeviceArray
    sinks: DeviceArray | None = None

    @property
    def sinks_pointer(self) -> int:
        """Address of the sink logits f32[n_heads], 0 without."""
        if self.sinks is None:
            return 0
        return require("sinks", self.sinks, "f32", (self.shape.n_heads,))


def rope_append(
    launcher: Launcher, x: Projections, q_out: DeviceArray, layer: AttentionLayer
) -> None:
    """Rotate q into q_out f16[tokens, n_heads · head_dim]; append rotated k, and v, to the cache.

    Raises KernelArgumentError.
    """
    q, k, v = x.pointers(layer.shape)
    arguments = RopeAppendArguments(
        q, k, v, require("q_out", q_out, "f16", x.q.shape), layer.rotation.pointer,
        require("position", layer.position, "i32", (1,)), layer.cache.structure(layer.shape),
        x.q.stride, x.k.stride, x.v.stride, layer.shape.n_heads, layer.rotation.n_pairs,
    )  # fmt: skip
    kernel = Kernel("rope.cu", f"rope_append_{layer.rotation.pairs}")
    launcher.launch(kernel, LaunchShape((x.q.shape[0], 1), 256), arguments)


def attention_prefill_kernel(head_dim: int) -> Kernel:
    """The prefill kernel for a head size."""
    entry = f"attention_prefill_{head_dim}"
    code = (
        f"ENTRY __launch_bounds__(128) {entry}(const __grid_constant__ AttentionPrefillArgs a) "
        f"{{ attention_prefill<{head_dim}>(a); }}"
    )
    return Kernel("attention_prefill.cu", entry, code)


def attention_prefill(
    launcher: Launcher,
    q: DeviceArray,
    out: tuple[DeviceArray | None, DeviceArray | None],
    layer: AttentionLayer,
) -> None:
    """Out (f32, f16; either may be None) = attention of q f16[tokens, n_heads · head_dim].

    The chunk's keys and values are in the cache already. Raises KernelArgumentError.
    """
    shape, (full, half) = layer.shape, out
    tokens = q.shape[0]
    size = (tokens, shape.n_heads * shape.head_dim)
    if full is None and half is None:
        raise KernelArgumentError("out: wanted a float or a half array, got neither")
    arguments = AttentionPrefillArguments(
        require("q", q, "f16", size),
        require("out", full, "f32", size) if full else 0,
        require("half_out", half, "f16", size) if half else 0,
        layer.sinks_pointer, require("position", layer.position, "i32", (1,)),
        layer.cache.structure(shape), tokens, shape.n_heads, shape.window, shape.scale,
    )  # fmt: skip
    shared_bytes = 5 * PAGE_TOKENS * (shape.head_dim + 8) * 2
    launch = LaunchShape((-(-tokens // 64), shape.n_heads), 128, shared_bytes)
    launcher.launch(attention_prefill_kernel(shape.head_dim), launch, arguments)


@dataclass(frozen=True)
class Splits:
    """Flash decoding's partial results: out f32[n_heads, max_splits, head_dim], sums (m, l).

    The keys that a position sees are shared evenly by at most `max_splits` splits of at least
    `least_keys`.
    """

    out: DeviceArray
    sums: DeviceArray
    least_keys: int
    max_splits: int

    def pointers(self, shape: AttentionShape) -> tuple[int, int]:
        """Addresses of out and sums; raises KernelArgumentError."""
        if not 1 <= self.max_splits <= MAX_SPLITS:
            raise KernelArgumentError(
                f"max_splits: wanted 1 to {MAX_SPLITS}, got {self.max_splits}"
            )
        if self.least_keys % STEP_KEYS or self.least_keys < STEP_KEYS:
            raise KernelArgumentError(
                f"least_keys: wanted a multiple of {STEP_KEYS}, got {self.least_keys}"
            )
        size = (shape.n_heads, self.max_splits, shape.head_dim)
        sums = require("sums", self.sums, "f32", (shape.n_heads, self.max_splits, 2))
        return require("out", self.out, "f32", size), sums


@dataclass(frozen=True)
class DecodeTuning:
    """Warps a block, steps of 16 keys in flight a warp, blocks a split (over 1: sm_90 on)."""

    warps: int
    slots: int
    cluster: int = 1

    def shared_bytes(self, head_dim: int) -> int:
        """Shared memory of a block's keys and values in flight."""
        return self.warps * self.slots * 2 * STEP_KEYS * head_dim * 2


SMALL_BLOCKS = DecodeTuning(4, 1)


def attention_decode_kernel(
    shape: AttentionShape, pairs: RopePairs, tuning: DecodeTuning
) -> Kernel:
    """The decode kernel for a head size, heads a block, RoPE form and tuning."""
    t = tuning
    parameters = (
        shape.head_dim,
        shape.heads_a_block,
        _PAIRS[pairs],
        t.warps,
        t.slots,
        t.cluster,
    )
    entry = "attention_decode_" + "_".join(str(p) for p in parameters)
    blocks = max(1, _WARPS_A_MULTIPROCESSOR // t.warps)
    clusters = f"IN_CLUSTERS_OF({t.cluster}) " if t.cluster > 1 else ""
    code = (
        f"ENTRY __launch_bounds__({t.warps * 32}, {blocks}) {clusters}"
        f"{entry}(const __grid_constant__ AttentionDecodeArgs a) "
        f"{{ attention_decode<{', '.join(str(p) for p in parameters)}>(a); }}"
    )
    return Kernel("attention_decode.cu", entry, code)


def attention_decode(
    launcher: Launcher,
    x: Projections,
    splits: Splits,
    layer: AttentionLayer,
    n_splits: int,
    tuning: DecodeTuning = SMALL_BLOCKS,
) -> None:
    """Rotate and append this token's k and v, and attend in at most n_splits splits.

    Raises KernelArgumentError.
    """
    shape = layer.shape
    if x.q.shape[0] != 1 or not 1 <= n_splits <= splits.max_splits:
        raise KernelArgumentError(
            f"decode takes one token in 1 to {splits.max_splits} splits, "
            f"got {x.q.shape[0]} tokens, {n_splits} splits"
        )
    _check_cluster(launcher.limits, tuning)
    groups = shape.n_heads // shape.n_kv_heads // shape.heads_a_block
    arguments = AttentionDecodeArguments(
        *x.pointers(shape), *splits.pointers(shape), layer.rotation.pointer,
        require("position", layer.position, "i32", (1,)), layer.cache.structure(shape),
        layer.rotation.n_pairs, shape.window, splits.least_keys, splits.max_splits, groups,
        shape.scale,
    )  # fmt: skip
    grid = (n_splits * tuning.cluster, shape.n_kv_heads * groups)
    launch = LaunchShape(grid, tuning.warps * 32, tuning.shared_bytes(shape.head_dim))
    launcher.launch(attention_decode_kernel(shape, layer.rotation.pairs, tuning), launch, arguments)


def _check_cluster(limits: DeviceLimits, tuning: DecodeTuning) -> None:
    if tuning.cluster > 1 and not limits.has_clusters:
        raise KernelArgumentError(f"{limits.architecture} has no clusters, got {tuning}")


def attention_merge(
    launcher: Launcher, splits: Splits, out: DeviceArray, layer: AttentionLayer
) -> None:
    """Out f32[1, n_heads · head_dim] = the splits joined; raises KernelArgumentError."""
    shape = layer.shape
    partial, sums = splits.pointers(shape)
    arguments = AttentionMergeArguments(
        partial, sums, layer.sinks_pointer, require("position", layer.position, "i32", (1,)),
        require("out", out, "f32", (1, shape.n_heads * shape.head_dim)),
        shape.head_dim, shape.window, splits.least_keys, splits.max_splits,
    )  # fmt: skip
    kernel = Kernel("attention_decode.cu", "attention_merge")
    launcher.launch(kernel, LaunchShape((shape.n_heads, 1), 512), arguments)
