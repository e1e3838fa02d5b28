"""Launchers of gemm.cu and gemm_float.cu: linears over a chunk of tokens."""

import ctypes
from dataclasses import dataclass
from typing import Literal

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.matrix import PackedMatrix
from kernels.moe import Routing
from kernels.structure import INT, POINTER, U64, fields

GemmEpilogue = Literal["STORE", "ADD", "SILU", "CLAMPED"]
Grouping = Literal["DENSE", "EXPERT_IN", "EXPERT_OUT"]
_COLUMNS = 128
_FEW_ROWS = 32
_MANY_ROWS = 128
_SHARED_BYTES = {rows: 3 * rows * 64 * 2 + 2 * _COLUMNS * 64 * 2 for rows in (32, 128)}
_ROUTER_ROWS = 64


class GemmArguments(ctypes.Structure):
    """gemm.cu: GemmArgs."""

    _fields_ = [
        *fields(POINTER, "x tiles out half_out bias entries first_row routing"),
        *fields(U64, "expert_bytes"),
        *fields(INT, "m n k tile_rows out_stride n_experts chosen"),
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
        parameters = f"{self.type}, {self.epilogue}, {self.grouping}, {self.block_rows}"
        code = (
            f"ENTRY __launch_bounds__(256, 2) {entry}(const __grid_constant__ GemmArgs a) "
            f"{{ gemm<{parameters}>(a); }}"
        )
        return Kernel("gemm.cu", entry, code)


def gemm(
    launcher: Launcher,
    x: DeviceArray,
    matrix: PackedMatrix,
    out: DeviceArray,
    epilogue: GemmEpilogue = "STORE",
    bias: DeviceArray | None = None,
) -> None:
    """Out (+)= x f16[m, k] · matrixᵀ + bias; gated epilogues write f16[m, rows / 2].

    Rows of a gated matrix alternate gate, up. Raises KernelArgumentError.
    """
    m = x.shape[0]
    arguments = GemmArguments(
        x=require("x", x, "f16", (m, matrix.k)),
        bias=require("bias", bias, "f32", (matrix.rows,)) if bias else 0,
        **_outputs(out, m, matrix, epilogue),
        **_matrix_arguments(matrix),
        m=m,
    )
    rows = _FEW_ROWS if m <= 2 * _FEW_ROWS else _MANY_ROWS
    grid = (-(-m // rows), -(-matrix.rows // _COLUMNS))
    variant = GemmVariant(matrix.type, epilogue, "DENSE", rows)
    launcher.launch(variant.kernel, LaunchShape(grid, 256, _SHARED_BYTES[rows]), arguments)


def _matrix_arguments(matrix: PackedMatrix) -> dict[str, int]:
    if matrix.is_float:
        raise KernelArgumentError(f"gemm takes quantized weights, got {matrix.type}")
    return {
        "tiles": matrix.tiles.pointer,
        "expert_bytes": matrix.expert_bytes,
        "n": matrix.rows,
        "k": matrix.k,
        "tile_rows": matrix.tile_rows,
    }


def _outputs(
    out: DeviceArray, rows: int, matrix: PackedMatrix, epilogue: GemmEpilogue
) -> dict[str, int]:
    if epilogue in ("SILU", "CLAMPED"):
        if matrix.rows % 2:
            raise KernelArgumentError(f"gate and up rows alternate, got {matrix.rows} rows")
        pointer = require("out", out, "f16", (rows, matrix.rows // 2))
        return {"half_out": pointer, "out_stride": out.stride}
    pointer = require("out", out, "f32", (rows, matrix.rows), strided=True)
    return {"out": pointer, "out_stride": out.stride}


@dataclass(frozen=True)
class GroupedGemm:
    """A linear of the chosen experts: `bias` f32[n_experts, rows], `n_tokens` routed tokens."""

    matrix: PackedMatrix
    bias: DeviceArray
    routing: Routing
    n_tokens: int
    epilogue: GemmEpilogue
    grouping: Grouping


def grouped_gemm(launcher: Launcher, x: DeviceArray, out: DeviceArray, spec: GroupedGemm) -> None:
    """EXPERT_IN: x f16[tokens, k] to sorted rows; EXPERT_OUT: sorted rows to f32[entries, rows].

    Raises KernelArgumentError.
    """
    matrix, routing = spec.matrix, spec.routing
    entries = spec.n_tokens * routing.chosen
    x_rows = spec.n_tokens if spec.grouping == "EXPERT_IN" else entries
    arguments = GemmArguments(
        x=require("x", x, "f16", (x_rows, matrix.k)),
        bias=require("bias", spec.bias, "f32", (matrix.n_experts, matrix.rows)),
        entries=require("entries", routing.entries, "i32", (entries,)),
        first_row=require("first_row", routing.first_row, "i32", (matrix.n_experts + 1,)),
        routing=require("routing", routing.routing, "f32", (entries,)),
        **_outputs(out, entries, matrix, spec.epilogue),
        **_matrix_arguments(matrix),
        m=entries,
        n_experts=matrix.n_experts,
        chosen=routing.chosen,
    )
    rows = _FEW_ROWS if 2 * entries <= _FEW_ROWS * matrix.n_experts else _MANY_ROWS
    grid = (min(entries, entries // rows + matrix.n_experts), -(-matrix.rows // _COLUMNS))
    variant = GemmVariant(matrix.type, spec.epilogue, spec.grouping, rows)
    launcher.launch(variant.kernel, LaunchShape(grid, 256, _SHARED_BYTES[rows]), arguments)


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
        rows_shape = LaunchShape((-(-m // 4), 1), 256)
        launcher.launch(Kernel("gemm_float.cu", "router_float"), rows_shape, arguments)
        return
    kernel = Kernel("gemm_float.cu", f"gemm_float_{matrix.type}")
    shape = LaunchShape((-(-m // 64), -(-matrix.rows // 64)), 256)
    launcher.launch(kernel, shape, arguments)
