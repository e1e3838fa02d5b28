"""Launcher of gemv.cu: linears of one token, fused with the norm, attention or experts around."""

import ctypes
from dataclasses import dataclass, field
from typing import Literal

from kernels.arrays import DeviceArray, require
from kernels.attention import AttentionShape, KvPages
from kernels.context import DeviceLimits, Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.matrix import PackedMatrix, padded_width, tile_bytes, tile_format
from kernels.structure import FLOAT, INT, POINTER, U64, KvCacheStructure, fields

Prologue = Literal["PLAIN", "NORM", "ATTENTION", "EXPERT_IN", "EXPERT_OUT_PRO"]
GemvEpilogue = Literal["STORE", "ADD", "ADD_ROUTE", "SILU", "CLAMPED", "EXPERT_OUT", "LOGITS"]
MERGED_SPLITS = 8
ROUTER_LANES = 32
_MAX_WARPS = 24
_EARLY_SHARE = 3
_TILE_TARGET_BYTES = 4096
_MOST_AHEAD_CHUNKS = 26 << 8


class KvAheadStructure(ctypes.Structure):
    """kv_page.cuh: KvAhead."""

    _fields_ = [
        ("cache", KvCacheStructure),
        *fields(POINTER, "position"),
        *fields(INT, "window most_chunks"),
    ]


class GemvArguments(ctypes.Structure):
    """gemv.cu: GemvArgs."""

    _fields_ = [
        ("weights", POINTER * 3),
        ("out", POINTER * 3),
        ("bias", POINTER * 3),
        *fields(POINTER, "x norm_weight pending split_sums sinks position router router_bias"),
        *fields(POINTER, "partials best_value best_index"),
        *fields(U64, "expert_bytes"),
        ("tile_end", INT * 3),
        ("rows", INT * 3),
        *fields(INT, "head_dim window least_keys n_partials router_width real_k early_tiles"),
        *fields(FLOAT, "eps"),
        ("ahead", KvAheadStructure),
    ]


@dataclass(frozen=True)
class GemvTuning:
    """Rows a tile, warps a block, ring slots a warp.

    `least_shared_bytes` over half of a multiprocessor's keeps two blocks of one launch off it;
    `evict_first` keeps L2 for keys and activations instead of weights; `early_tiles` of the ring
    are asked for before the activation (None: all).
    """

    tile_rows: int
    warps: int
    slots: int
    least_shared_bytes: int = 0
    evict_first: bool = False
    early_tiles: int | None = None


TUNED_SHARED_BYTES = 227 << 10
_OVER_HALF = 116 << 10
TUNED = {
    ("Q5_0", 1152, 896): GemvTuning(2, 18, 1, _OVER_HALF, early_tiles=5),
    ("Q8_0", 1152, 896): GemvTuning(2, 18, 1, _OVER_HALF, early_tiles=5),
    ("Q5_0", 896, 896): GemvTuning(2, 10, 1, _OVER_HALF),
    ("Q5_0", 9728, 896): GemvTuning(4, 20, 1, early_tiles=6),
    ("Q4_K", 896, 4864): GemvTuning(1, 16, 1, early_tiles=0),
    ("Q6_K", 896, 4864): GemvTuning(1, 20, 1, early_tiles=2),
    ("Q8_0", 151936, 896): GemvTuning(4, 10, 1, _OVER_HALF, early_tiles=3),
    ("Q5_K", 9216, 3072): GemvTuning(2, 12, 2, _OVER_HALF, evict_first=True, early_tiles=7),
    ("Q4_K", 3072, 3072): GemvTuning(4, 24, 1, _OVER_HALF, evict_first=True, early_tiles=3),
    ("Q4_K", 16384, 3072): GemvTuning(4, 8, 2, evict_first=True, early_tiles=6),
    ("Q4_K", 3072, 8192): GemvTuning(1, 24, 1, evict_first=True, early_tiles=9),
    ("Q6_K", 3072, 8192): GemvTuning(1, 24, 1, _OVER_HALF, evict_first=True, early_tiles=12),
    ("Q6_K", 32064, 3072): GemvTuning(2, 24, 1, _OVER_HALF, evict_first=True, early_tiles=7),
    ("Q8_0", 5120, 2880): GemvTuning(4, 12, 1, _OVER_HALF, evict_first=True, early_tiles=4),
    ("Q8_0", 2880, 4096): GemvTuning(2, 20, 1, _OVER_HALF, evict_first=True),
    ("MXFP4", 23040, 2880): GemvTuning(4, 16, 1, _OVER_HALF, evict_first=True),
    ("MXFP4", 11520, 2880): GemvTuning(4, 12, 1, evict_first=True, early_tiles=4),
    ("Q8_0", 201088, 2880): GemvTuning(1, 16, 1, _OVER_HALF, evict_first=True, early_tiles=4),
}
"""Best of a random search over whole decode steps on an H200, by (type, rows of a launch, k)."""


def staged_bytes(type_name: str, k: int) -> int:
    """Shared memory of the staged activation."""
    width = padded_width(k)
    return 4 * width if tile_format(type_name).is_float else 2 * width + width // 2


def shared_bytes(tuning: GemvTuning, slot_bytes: int, activation: int) -> int:
    """Dynamic shared memory of a block: ring, activation, reductions, barriers."""
    warps = tuning.warps
    ring = warps * tuning.slots * slot_bytes
    return ring + activation + warps * 33 * 4 + 64 + 8 + warps * tuning.slots * 8 + 16


def preferred_tile_rows(type_name: str, rows: int, k: int, *, gated: bool = False) -> int:
    """Tile height for a matrix: short tiles where rows are long or few; gated pairs need two."""
    tuned = TUNED.get((type_name, rows, k))
    if tuned:
        return tuned.tile_rows
    row_bytes = tile_bytes(type_name, 1, k)
    wanted = 4 if row_bytes * 4 <= _TILE_TARGET_BYTES else 2 if row_bytes <= 2600 else 1
    if rows < 132 * 24:
        wanted = min(wanted, 1)
    elif rows < 132 * 64:
        wanted = min(wanted, 2)
    return max(wanted, 2) if gated else wanted


def choose_tuning(
    limits: DeviceLimits, matrices: tuple[PackedMatrix, ...], n_rows: int, k: int
) -> GemvTuning:
    """Warps and slots that keep many bytes in flight within shared memory, for `n_rows` in all."""
    tile_rows = matrices[0].tile_rows
    tuned = TUNED.get((matrices[0].type, n_rows, k))
    if tuned and tuned.tile_rows == tile_rows and limits.shared_bytes >= TUNED_SHARED_BYTES:
        return tuned
    slot = max(tile_bytes(m.type, tile_rows, k) for m in matrices)
    tiles_a_block = -(-n_rows // tile_rows // limits.n_multiprocessors) or 1
    budget = limits.shared_bytes - staged_bytes(matrices[0].type, k) - 8192
    rings = min(max(1, budget // slot), 120_000 // slot or 1)
    warps = max(1, min(16 if tiles_a_block > 24 else tiles_a_block, _MAX_WARPS, rings))
    warps = max(warps, min(8, budget // slot))
    if warps < 4 <= tiles_a_block:
        warps = max(1, min(4, budget // slot))
    slots = max(1, min(rings // warps, -(-tiles_a_block // warps), 4))
    return GemvTuning(tile_rows, warps, slots, early_tiles=-(-warps * slots // _EARLY_SHARE))


@dataclass(frozen=True)
class Segment:
    """One matrix over the shared x; out f32[rows] (or the epilogue's shape), bias f32[rows]."""

    matrix: PackedMatrix
    out: DeviceArray
    bias: DeviceArray | None = None


@dataclass(frozen=True)
class NormInput:
    """RMSNorm of x (+ Σ pending f32[chosen, width]) with weight f32[width]."""

    weight: DeviceArray
    eps: float


@dataclass(frozen=True)
class SplitInput:
    """x is attention_decode's partial output f32[n_heads, 8, head_dim]; sums f32[n_heads, 8, 2]."""

    sums: DeviceArray
    position: DeviceArray
    head_dim: int
    window: int
    least_keys: int
    sinks: DeviceArray | None = None


@dataclass(frozen=True)
class KeysAhead:
    """What the next attention will read at `position` i32[1]: brought to L2 on sm_90 and later."""

    cache: KvPages
    shape: AttentionShape
    position: DeviceArray

    def structure(self) -> KvAheadStructure:
        """The kernel's view; raises KernelArgumentError."""
        return KvAheadStructure(
            self.cache.structure(self.shape), require("position", self.position, "i32", (1,)),
            self.shape.window, _MOST_AHEAD_CHUNKS,
        )  # fmt: skip


@dataclass(frozen=True)
class ExpertChoice:
    """Routing inside the kernel: partial router logits f32[n_partials · 33], bias f32[32]."""

    partials: DeviceArray
    n_partials: int
    bias: DeviceArray
    width: int
    eps: float


@dataclass(frozen=True)
class Gemv:
    """One fused linear of one token.

    `router` f32[rows, 32] (norm weight folded in) with `partials` f32[grid · 33] is for the
    ADD_ROUTE epilogue, `best` (f32[grid], i32[grid]) for LOGITS, `ahead` for PLAIN with ADD.
    `chosen` experts: 0 without any.
    """

    segments: tuple[Segment, ...]
    x: DeviceArray
    prologue: Prologue
    epilogue: GemvEpilogue
    tuning: GemvTuning
    norm: NormInput | None = None
    split: SplitInput | None = None
    choice: ExpertChoice | None = None
    pending: DeviceArray | None = None
    router: DeviceArray | None = None
    partials: DeviceArray | None = None
    best: tuple[DeviceArray, DeviceArray] | None = None
    ahead: KeysAhead | None = None
    chosen: int = 0
    kernel: Kernel = field(init=False)

    def __post_init__(self) -> None:
        """Check every shape once; the kernel's name follows from them."""
        self._check_segments()
        self._check_parts()
        object.__setattr__(self, "kernel", self._kernel())

    @property
    def matrix(self) -> PackedMatrix:
        """The first matrix; all share k and tile height."""
        return self.segments[0].matrix

    def _check_segments(self) -> None:
        first = self.matrix
        if not 1 <= len(self.segments) <= 3 or (
            len(self.segments) > 1 and self.epilogue != "STORE"
        ):
            raise KernelArgumentError(f"{self.epilogue} of {len(self.segments)} matrices")
        for segment in self.segments:
            m = segment.matrix
            if (m.k, m.tile_rows, m.is_float) != (first.k, first.tile_rows, first.is_float):
                raise KernelArgumentError(
                    f"segments differ: {m.type} k {m.k} tile {m.tile_rows}, "
                    f"{first.type} k {first.k} tile {first.tile_rows}"
                )
            if segment.bias:
                rows = (m.rows,) if m.n_experts == 1 else (m.n_experts, m.rows)
                require("bias", segment.bias, "f32", rows)
            require("out", segment.out, "f32", self._out_shape(m))
        if self.tuning.tile_rows != first.tile_rows:
            raise KernelArgumentError(f"tile_rows: matrix {first.tile_rows}, {self.tuning}")
        if len({s.matrix.type for s in self.segments[:2]}) > 1:
            raise KernelArgumentError("only the last of three matrices may differ in type")

    def _out_shape(self, m: PackedMatrix) -> tuple[int, ...]:
        if self.epilogue in ("SILU", "CLAMPED"):
            if m.tile_rows < 2 or m.rows % 2:
                raise KernelArgumentError(f"gate and up share a tile, got {m.tile_rows} row tiles")
            rows = m.rows // 2
        else:
            rows = m.rows
        return (self.chosen if self.choice else 1, rows)

    def _check_parts(self) -> None:
        width = self.matrix.k
        wanted = {
            "norm": self.prologue in ("NORM", "EXPERT_IN"),
            "split": self.prologue == "ATTENTION",
            "choice": self.prologue in ("EXPERT_IN", "EXPERT_OUT_PRO"),
            "router": self.epilogue == "ADD_ROUTE",
            "partials": self.epilogue == "ADD_ROUTE",
            "best": self.epilogue == "LOGITS",
        }
        for name, needed in wanted.items():
            if (getattr(self, name) is not None) != needed:
                raise KernelArgumentError(
                    f"{self.prologue} {self.epilogue}: {name} is {'missing' if needed else 'extra'}"
                )
        if self.ahead and (self.prologue, self.epilogue, self.chosen) != ("PLAIN", "ADD", 0):
            raise KernelArgumentError(f"{self.prologue} {self.epilogue}: ahead is extra")
        if self.norm:
            require("norm.weight", self.norm.weight, "f32", (width,))
        if self.pending:
            rows = self.matrix.rows if self.epilogue.startswith("ADD") else width
            require("pending", self.pending, "f32", (self.chosen, rows))
        if self.router:
            require("router", self.router, "f32", (self.matrix.rows, ROUTER_LANES))
        self._check_x(width)

    def _check_x(self, width: int) -> None:
        if self.split:
            n_heads = width // self.split.head_dim
            size: tuple[int, ...] = (n_heads, MERGED_SPLITS, self.split.head_dim)
            require("split.sums", self.split.sums, "f32", (n_heads, MERGED_SPLITS, 2))
        else:
            size = (self.chosen if self.prologue == "EXPERT_OUT_PRO" else 1, width)
        require("x", self.x, "f32", size)

    def _kernel(self) -> Kernel:
        m, t = self.matrix, self.tuning
        last = self.segments[2].matrix.type if len(self.segments) == 3 else m.type
        parameters = (
            m.type, last, m.k, t.tile_rows, t.warps, t.slots,
            self.prologue, self.epilogue, m.n_experts, self.chosen, int(t.evict_first),
        )  # fmt: skip
        entry = "gemv_" + "_".join(str(p) for p in parameters)
        code = (
            f"ENTRY __launch_bounds__({t.warps * 32}) {entry}(const __grid_constant__ GemvArgs a) "
            f"{{ gemv<{', '.join(str(p) for p in parameters)}>(a); }}"
        )
        return Kernel("gemv.cu", entry, code)

    def _arguments(self) -> GemvArguments:
        early_tiles = self.tuning.early_tiles
        if early_tiles is None:
            early_tiles = self.tuning.warps * self.tuning.slots
        a = GemvArguments(x=self.x.pointer, real_k=self.matrix.k, early_tiles=early_tiles)
        end = 0
        for i in range(3):
            if i < len(self.segments):
                segment = self.segments[i]
                a.weights[i], a.out[i] = segment.matrix.tiles.pointer, segment.out.pointer
                a.bias[i] = segment.bias.pointer if segment.bias else None
                a.rows[i] = segment.matrix.rows
                end += segment.matrix.n_tiles * (self.chosen if self.prologue == "EXPERT_IN" else 1)
            a.tile_end[i] = end
        a.expert_bytes = self.matrix.expert_bytes
        self._fill_parts(a)
        return a

    def _fill_parts(self, a: GemvArguments) -> None:
        if self.norm:
            a.norm_weight, a.eps = self.norm.weight.pointer, self.norm.eps
        if self.split:
            a.split_sums, a.position = self.split.sums.pointer, self.split.position.pointer
            a.sinks = self.split.sinks.pointer if self.split.sinks else None
            a.head_dim, a.window = self.split.head_dim, self.split.window
            a.least_keys = self.split.least_keys
        if self.choice:
            a.partials, a.n_partials = self.choice.partials.pointer, self.choice.n_partials
            a.router_bias, a.eps = self.choice.bias.pointer, self.choice.eps
            a.router_width = self.choice.width
        if self.ahead:
            a.ahead = self.ahead.structure()
        if self.pending:
            a.pending = self.pending.pointer
        if self.router and self.partials:
            a.router, a.partials = self.router.pointer, self.partials.pointer
        if self.best:
            a.best_value, a.best_index = self.best[0].pointer, self.best[1].pointer

    def launch(self, launcher: Launcher) -> None:
        """Queue the kernel, one block a multiprocessor; raises KernelArgumentError."""
        grid = launcher.limits.n_multiprocessors
        shares = self.chosen if self.prologue == "EXPERT_OUT_PRO" else 1
        grid -= grid % shares
        if self.partials:
            require("partials", self.partials, "f32", (grid * (ROUTER_LANES + 1),))
        for best in self.best or ():
            require("best", best, best.dtype, (grid,))
        slot = max(
            tile_bytes(s.matrix.type, self.tuning.tile_rows, self.matrix.k) for s in self.segments
        )
        size = shared_bytes(self.tuning, slot, staged_bytes(self.matrix.type, self.matrix.k))
        size = max(size, self.tuning.least_shared_bytes)
        if size > launcher.limits.shared_bytes:
            raise KernelArgumentError(
                f"{self.kernel.entry}: wanted {size} bytes of shared memory, "
                f"the device has {launcher.limits.shared_bytes}"
            )
        launcher.launch(
            self.kernel, LaunchShape((grid, 1), self.tuning.warps * 32, size), self._arguments()
        )
