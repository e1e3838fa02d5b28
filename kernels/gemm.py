"""Launchers of gemm.cu and its kin: linears over a chunk of tokens."""

import ctypes
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from kernels.arrays import DeviceArray, require
from kernels.context import DeviceLimits, Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.gemm_warpgroup import (
    SHARED_BYTES,
    TILES,
    best_tile,
    has_warpgroups,
    warpgroup_kernel,
)
from kernels.matrix import PackedMatrix, tile_bytes
from kernels.moe import Routing
from kernels.structure import INT, POINTER, U64, fields

GemmEpilogue = Literal["STORE", "ADD", "SILU", "CLAMPED"]
Grouping = Literal["DENSE", "EXPERT_IN", "EXPERT_OUT"]
_COLUMNS = 128
_FEW_ROWS = 32
_MANY_ROWS = 128
_SHARED_BYTES = {rows: 3 * rows * 64 * 2 + 2 * _COLUMNS * 64 * 2 for rows in (32, 128)}
_ROUTER_ROWS = 64
_DENSE_BLOCKS, _EXPERT_BLOCKS = 2, {32: 4, 128: 2}
_GATED = ("SILU", "CLAMPED")
FEW_TOKENS = 64
_GROUP_ROWS = 16
_FEW_WARPS = 8
_FEW_STATIC_BYTES = 1152
_MULTIPROCESSOR_BYTES, _RESERVED_BYTES = 228 << 10, 1 << 10
_MOST_SLOTS = 4
_FEW_DENSE = ((16, 2, 2), (16, 1, 1), (8, 2, 1), (8, 1, 1))
_FEW_EXPERTS = ((8, 2, 2), (8, 1, 2), (8, 1, 1))


class GemmArguments(ctypes.Structure):
    """gemm.cu: GemmArgs."""

    _fields_ = [
        *fields(POINTER, "x"),
        ("tiles", POINTER * 3),
        ("out", POINTER * 3),
        ("bias", POINTER * 3),
        *fields(POINTER, "half_out entries first_row routing"),
        *fields(U64, "expert_bytes"),
        ("columns", INT * 3),
        ("out_stride", INT * 3),
        ("column_blocks", INT * 3),
        *fields(INT, "m k tile_rows n_experts chosen slots"),
    ]


class GemmFloatArguments(ctypes.Structure):
    """gemm_float.cu: GemmFloatArgs."""

    _fields_ = [
        *fields(POINTER, "x tiles out bias"),
        *fields(INT, "m n k padded_k tile_rows x_stride out_stride add"),
    ]


@dataclass(frozen=True)
class GemmVariant:
    """A template instance of gemm.cu."""

    type: str
    epilogue: GemmEpilogue
    grouping: Grouping = "DENSE"
    block_rows: int = _MANY_ROWS

    @property
    def kernel(self) -> Kernel:
        """The kernel of this variant."""
        entry = f"gemm_{self.type}_{self.epilogue}_{self.grouping}_{self.block_rows}"
        is_dense = self.grouping == "DENSE"
        blocks = _DENSE_BLOCKS if is_dense else _EXPERT_BLOCKS[self.block_rows]
        parameters = f"{self.type}, {self.epilogue}, {self.grouping}, {self.block_rows}"
        code = (
            f"ENTRY __launch_bounds__(256, {blocks}) "
            f"{entry}(const __grid_constant__ GemmArgs a) "
            f"{{ gemm<{parameters}>(a); }}"
        )
        return Kernel("gemm.cu", entry, code)


@dataclass(frozen=True)
class FewTuning:
    """gemm_few.cu: rows of x a part, blocks a multiprocessor, groups of weights in flight."""

    rows: int
    blocks: int
    slots: int


@dataclass(frozen=True)
class FewVariant:
    """A template instance of gemm_few.cu."""

    type: str
    epilogue: GemmEpilogue
    grouping: Grouping
    tuning: FewTuning

    @property
    def kernel(self) -> Kernel:
        """The kernel of this variant."""
        t = self.tuning
        entry = f"gemm_few_{self.type}_{self.epilogue}_{self.grouping}_{t.rows}_{t.blocks}"
        code = (
            f"ENTRY __launch_bounds__({32 * _FEW_WARPS}, {t.blocks}) "
            f"{entry}(const __grid_constant__ GemmArgs a) "
            f"{{ gemm_few<{self.type}, {self.epilogue}, {self.grouping}, {t.rows}>(a); }}"
        )
        return Kernel("gemm_few.cu", entry, code)


def few_bytes(matrix: PackedMatrix, rows: int, slots: int) -> tuple[int, int]:
    """(Dynamic, static) shared bytes of a block of gemm_few.cu."""
    x = rows * (-(-matrix.k // 128) * 256 + 32)
    group = tile_bytes(matrix.type, matrix.tile_rows, matrix.k) * (_GROUP_ROWS // matrix.tile_rows)
    partial = 2 * _FEW_WARPS * _GROUP_ROWS * rows * 4
    return x + slots * group, partial + _FEW_STATIC_BYTES


def few_tuning(limits: DeviceLimits, matrix: PackedMatrix, grouping: Grouping) -> FewTuning | None:
    """The first of a few tunings, best first, that fits; None if the weights' rows are too long.

    Depends on the matrix and the device alone, so a row's result does not depend on the others.
    """
    for rows, blocks, least_slots in _FEW_EXPERTS if grouping != "DENSE" else _FEW_DENSE:
        room = min(limits.shared_bytes, _MULTIPROCESSOR_BYTES // blocks - _RESERVED_BYTES)
        for slots in range(_MOST_SLOTS, least_slots - 1, -1):
            if sum(few_bytes(matrix, rows, slots)) <= room:
                return FewTuning(rows, blocks, slots)
    return None


@dataclass(frozen=True)
class GemmOutput:
    """One matrix over the shared x: where its result goes, and its bias f32[rows]."""

    matrix: PackedMatrix
    out: DeviceArray
    bias: DeviceArray | None = None


def gemm(
    launcher: Launcher,
    x: DeviceArray,
    outputs: tuple[GemmOutput, ...],
    epilogue: GemmEpilogue = "STORE",
    *,
    few: bool = True,
) -> None:
    """Out (+)= x f16[m, k] · matrixᵀ + bias, for up to three matrices of one type.

    `few` lets under 64 rows take gemm_few.cu, which adds in another order.

    out f32[m, rows]; gated epilogues (one matrix, rows alternate gate, up) f16[m, rows / 2]. Raises
    KernelArgumentError.
    """
    m, first = x.shape[0], outputs[0].matrix
    if not 1 <= len(outputs) <= 3 or (len(outputs) > 1 and epilogue in _GATED):
        raise KernelArgumentError(f"gemm: {len(outputs)} matrices with {epilogue}")
    arguments = GemmArguments(x=require("x", x, "f16", (m, first.k)), m=m)
    for output in outputs:
        bias = output.bias
        if (output.matrix.type, output.matrix.tile_rows) != (first.type, first.tile_rows):
            raise KernelArgumentError(f"gemm: {output.matrix.type} beside {first.type}")
        pointer = require("bias", bias, "f32", (output.matrix.rows,)) if bias else 0
        _add_output(arguments, output, (m, epilogue), pointer)
    tuning = few_tuning(launcher.limits, first, "DENSE") if few and m < FEW_TOKENS else None
    if tuning:
        few_variant = FewVariant(first.type, epilogue, "DENSE", tuning)
        _launch_few(launcher, few_variant, first, arguments, -(-m // tuning.rows))
        return
    _launch_many(launcher, (first.type, epilogue, "DENSE"), arguments)


def _add_output(
    arguments: GemmArguments, output: GemmOutput, form: tuple[int, GemmEpilogue], bias: int
) -> None:
    """Fill the next segment; those after it stay empty, with the same running count."""
    (rows, epilogue), matrix = form, output.matrix
    if matrix.is_float:
        raise KernelArgumentError(f"gemm takes quantized weights, got {matrix.type}")
    if epilogue in _GATED and matrix.rows % 2:
        raise KernelArgumentError(f"gate and up rows alternate, got {matrix.rows} rows")
    at = sum(1 for n in arguments.columns if n)
    blocks = -(-matrix.rows // _COLUMNS)
    before = arguments.column_blocks[at - 1] if at else 0
    if epilogue in _GATED:
        arguments.half_out = require("out", output.out, "f16", (rows, matrix.rows // 2))
    else:
        arguments.out[at] = require("out", output.out, "f32", (rows, matrix.rows), strided=True)
    arguments.tiles[at], arguments.bias[at] = matrix.tiles.pointer, bias or None
    arguments.columns[at], arguments.out_stride[at] = matrix.rows, output.out.stride
    for segment in range(at, 3):
        arguments.column_blocks[segment] = before + blocks
    arguments.expert_bytes, arguments.k = matrix.expert_bytes, matrix.k
    arguments.tile_rows = matrix.tile_rows


def _launch_many(
    launcher: Launcher, form: tuple[str, GemmEpilogue, Grouping], arguments: GemmArguments
) -> None:
    """Launch gemm_warpgroup.cu where the device has it, gemm.cu elsewhere: the same bits."""
    rows, columns = (arguments.m, arguments.n_experts), arguments.column_blocks[2]
    launcher.launch(*many_launch(launcher.limits, form, rows, columns), arguments)


@lru_cache(maxsize=1 << 12)
def many_launch(
    limits: DeviceLimits,
    form: tuple[str, GemmEpilogue, Grouping],
    rows: tuple[int, int],
    columns: int,
) -> tuple[Kernel, LaunchShape]:
    """Kernel and grid of a type, epilogue and grouping; a block takes a part of the rows.

    `rows`: rows of x, experts they are of (0: dense); `columns`: blocks of 128 columns.
    """
    m, n_experts = rows

    def parts(block_rows: int) -> int:
        return min(m, m // block_rows + n_experts) if n_experts else -(-m // block_rows)

    if has_warpgroups(limits):
        tile = best_tile(limits, tuple(parts(tile.tokens) for tile in TILES), columns)
        shape = LaunchShape((parts(tile.tokens), columns), tile.threads, SHARED_BYTES)
        others = tuple(warpgroup_kernel(form, each) for each in TILES)
        return replace(warpgroup_kernel(form, tile), others=others), shape
    is_short = 2 * m <= _FEW_ROWS * n_experts if n_experts else m <= 2 * _FEW_ROWS
    block_rows = _FEW_ROWS if is_short else _MANY_ROWS
    shape = LaunchShape((parts(block_rows), columns), 256, _SHARED_BYTES[block_rows])
    others = tuple(GemmVariant(*form, each).kernel for each in _SHARED_BYTES)
    return replace(GemmVariant(*form, block_rows).kernel, others=others), shape


def _launch_few(
    launcher: Launcher,
    variant: FewVariant,
    matrix: PackedMatrix,
    arguments: GemmArguments,
    parts: int,
) -> None:
    """Count columns in groups of 16, and give every block a share of the jobs."""
    tuning, groups = variant.tuning, 0
    for segment, n in enumerate(arguments.columns):
        groups += -(-n // _GROUP_ROWS)
        arguments.column_blocks[segment] = groups
    arguments.slots = tuning.slots
    dynamic, _ = few_bytes(matrix, tuning.rows, tuning.slots)
    n_blocks = min(parts * groups, tuning.blocks * launcher.limits.n_multiprocessors)
    shape = LaunchShape((n_blocks, 1), 32 * _FEW_WARPS, dynamic)
    launcher.launch(variant.kernel, shape, arguments)


@dataclass(frozen=True)
class GroupedGemm:
    """A linear of the chosen experts: `bias` f32[n_experts, rows], `n_tokens` routed tokens.

    `few` as in `gemm`.
    """

    matrix: PackedMatrix
    bias: DeviceArray
    routing: Routing
    n_tokens: int
    epilogue: GemmEpilogue
    grouping: Grouping
    few: bool = True


def grouped_gemm(launcher: Launcher, x: DeviceArray, out: DeviceArray, spec: GroupedGemm) -> None:
    """EXPERT_IN: x f16[tokens, k] to sorted rows; EXPERT_OUT: sorted rows to f32[entries, rows].

    Raises KernelArgumentError.
    """
    matrix, routing = spec.matrix, spec.routing
    entries = spec.n_tokens * routing.chosen
    x_rows = spec.n_tokens if spec.grouping == "EXPERT_IN" else entries
    arguments = GemmArguments(
        x=require("x", x, "f16", (x_rows, matrix.k)),
        entries=require("entries", routing.entries, "i32", (entries,)),
        first_row=require("first_row", routing.first_row, "i32", (matrix.n_experts + 1,)),
        routing=require("routing", routing.routing, "f32", (entries,)),
        m=entries,
        n_experts=matrix.n_experts,
        chosen=routing.chosen,
    )
    bias = require("bias", spec.bias, "f32", (matrix.n_experts, matrix.rows))
    _add_output(arguments, GemmOutput(matrix, out), (entries, spec.epilogue), bias)
    tuning = few_tuning(launcher.limits, matrix, spec.grouping)
    if tuning and spec.few and spec.n_tokens < FEW_TOKENS:
        few_variant = FewVariant(matrix.type, spec.epilogue, spec.grouping, tuning)
        parts = min(entries, matrix.n_experts + entries // tuning.rows)
        _launch_few(launcher, few_variant, matrix, arguments, parts)
        return
    _launch_many(launcher, (matrix.type, spec.epilogue, spec.grouping), arguments)


def gemm_float(
    launcher: Launcher,
    x: DeviceArray,
    matrix: PackedMatrix,
    out: DeviceArray,
    bias: DeviceArray | None = None,
    *,
    add: bool = False,
) -> None:
    """Out f32[m, rows] (+)= x f32[m, k] · matrixᵀ + bias over F32, F16 or BF16 weights.

    Raises KernelArgumentError.
    """
    if not matrix.is_float:
        raise KernelArgumentError(f"gemm_float takes F32, F16 or BF16 weights, got {matrix.type}")
    m = x.shape[0]
    arguments = GemmFloatArguments(
        require("x", x, "f32", (m, matrix.k), strided=True), matrix.tiles.pointer,
        require("out", out, "f32", (m, matrix.rows), strided=True),
        require("bias", bias, "f32", (matrix.rows,)) if bias else 0,
        m, matrix.rows, matrix.k, matrix.padded_k, matrix.tile_rows, x.stride, out.stride, int(add),
    )  # fmt: skip
    if matrix.rows <= _ROUTER_ROWS and matrix.type == "F32":
        rows_shape = LaunchShape((-(-m // 4), -(-matrix.rows // 8)), 256)
        launcher.launch(Kernel("gemm_float.cu", "router_float"), rows_shape, arguments)
        return
    kernel = Kernel("gemm_float.cu", f"gemm_float_{matrix.type}")
    shape = LaunchShape((-(-m // 64), -(-matrix.rows // 64)), 256)
    launcher.launch(kernel, shape, arguments)
