"""Launchers of norm.cu."""

import ctypes

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.structure import FLOAT, INT, POINTER, fields


class NormArguments(ctypes.Structure):
    """norm.cu: NormArgs."""

    _fields_ = [
        *fields(POINTER, "x weight bias out half_out"),
        *fields(INT, "width x_stride out_stride"),
        *fields(FLOAT, "eps"),
    ]


def norm(
    launcher: Launcher,
    x: DeviceArray,
    weights: tuple[DeviceArray, DeviceArray | None],
    out: tuple[DeviceArray | None, DeviceArray | None],
    eps: float,
) -> None:
    """RMSNorm of x f32[rows, width] with (weight, None), LayerNorm with (weight, bias).

    `out` is (f32, f16), either may be None. Raises KernelArgumentError.
    """
    (weight, bias), (full, half) = weights, out
    if full is None and half is None:
        raise KernelArgumentError("out: wanted a float or a half array, got neither")
    rows, width = x.shape
    arguments = NormArguments(
        require("x", x, "f32", (rows, width), strided=True),
        require("weight", weight, "f32", (width,)),
        require("bias", bias, "f32", (width,)) if bias else 0,
        require("out", full, "f32", (rows, width), strided=True) if full else 0,
        require("half_out", half, "f16", (rows, width)) if half else 0,
        width, x.stride, full.stride if full else 0, eps,
    )  # fmt: skip
    entry = "layer_norm" if bias else "rms_norm"
    launcher.launch(Kernel("norm.cu", entry), LaunchShape((rows, 1), 256), arguments)
