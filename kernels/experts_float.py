"""Launcher of experts_float.cu: linears of the chosen experts over float weights."""

import ctypes
from typing import Literal

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.matrix import PackedMatrix
from kernels.moe import Routing
from kernels.structure import INT, POINTER, U64, fields

ExpertsKind = Literal["SILU", "CLAMPED", "WEIGHTED"]
_COLUMNS = 8


class ExpertsFloatArguments(ctypes.Structure):
    """experts_float.cu: ExpertsFloatArgs."""

    _fields_ = [
        *fields(POINTER, "x tiles out bias entries first_row routing"),
        *fields(U64, "expert_bytes"),
        *fields(INT, "n k padded_k tile_rows n_experts chosen"),
    ]


def experts_float(
    launcher: Launcher,
    x: DeviceArray,
    weights: tuple[PackedMatrix, DeviceArray],
    out: DeviceArray,
    routing: Routing,
    kind: ExpertsKind,
) -> None:
    """Gated kinds: x f32[tokens, k] to sorted f32[entries, rows / 2]; WEIGHTED: back to entries.

    `weights` are matrix and bias f32[n_experts, rows]. WEIGHTED takes sorted f32[entries, k] to
    f32[entries, rows], each times its routing. Raises KernelArgumentError.
    """
    matrix, bias = weights
    if not matrix.is_float or (kind != "WEIGHTED" and matrix.rows % 2):
        raise KernelArgumentError(f"experts_float: {matrix.rows} rows of {matrix.type} as {kind}")
    entries = routing.entries.shape[0]
    x_rows, columns = entries // routing.chosen, matrix.rows // 2
    if kind == "WEIGHTED":
        x_rows, columns = entries, matrix.rows
    arguments = ExpertsFloatArguments(
        require("x", x, "f32", (x_rows, matrix.k)), matrix.tiles.pointer,
        require("out", out, "f32", (entries, columns)),
        require("bias", bias, "f32", (matrix.n_experts, matrix.rows)),
        require("entries", routing.entries, "i32", (entries,)),
        require("first_row", routing.first_row, "i32", (matrix.n_experts + 1,)),
        require("routing", routing.routing, "f32", (entries,)),
        matrix.expert_bytes, matrix.rows, matrix.k, matrix.padded_k, matrix.tile_rows,
        matrix.n_experts, routing.chosen,
    )  # fmt: skip
    kernel = Kernel("experts_float.cu", f"experts_{matrix.type}_{kind}")
    launcher.launch(kernel, LaunchShape((entries, -(-columns // _COLUMNS)), 256), arguments)
