"""Launchers of elementwise.cu."""

import ctypes
from typing import Literal

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.structure import INT, POINTER, fields

Operation = Literal["copy", "add", "gelu", "silu", "clamped_swiglu"]
_TWO_OPERANDS = ("add", "silu", "clamped_swiglu")


class ElementwiseArguments(ctypes.Structure):
    """elementwise.cu: ElementwiseArgs."""

    _fields_ = [
        *fields(POINTER, "x y out half_out"),
        *fields(INT, "width x_stride y_stride out_stride"),
    ]


def elementwise(
    launcher: Launcher,
    operation: Operation,
    operands: tuple[DeviceArray, DeviceArray | None],
    out: tuple[DeviceArray | None, DeviceArray | None],
) -> None:
    """Out = operation(x, y) over f32[rows, width]; `out` is (f32, f16), either may be None.

    Raises KernelArgumentError for wrong shapes or a missing second operand.
    """
    (x, y), (full, half) = operands, out
    if (y is not None) != (operation in _TWO_OPERANDS):
        raise KernelArgumentError(f"{operation}: got {1 if y is None else 2} operands")
    if full is None and half is None:
        raise KernelArgumentError("out: wanted a float or a half array, got neither")
    rows, width = x.shape
    arguments = ElementwiseArguments(
        require("x", x, "f32", (rows, width), strided=True),
        require("y", y, "f32", (rows, width), strided=True) if y else 0,
        require("out", full, "f32", (rows, width), strided=True) if full else 0,
        require("half_out", half, "f16", (rows, width)) if half else 0,
        width, x.stride, y.stride if y else 0, full.stride if full else 0,
    )  # fmt: skip
    kernel = Kernel("elementwise.cu", f"elementwise_{operation}")
    launcher.launch(kernel, LaunchShape((-(-width // 256), rows), 256), arguments)
