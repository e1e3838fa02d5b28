"""Launchers of embed.cu."""

import ctypes

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.matrix import PackedMatrix
from kernels.structure import INT, POINTER, fields


class EmbedArguments(ctypes.Structure):
    """embed.cu: EmbedArgs."""

    _fields_ = [
        *fields(POINTER, "table ids out position"),
        *fields(INT, "tokens k padded_k tile_rows vocab out_stride add"),
    ]


def _launch(
    launcher: Launcher, out: DeviceArray, table: PackedMatrix, ids: int, position: int
) -> None:
    pointer = require("out", out, "f32", (None, table.k), strided=True)
    arguments = EmbedArguments(
        table.tiles.pointer, ids, pointer, position, out.shape[0], table.k, table.padded_k,
        table.tile_rows, table.rows, out.stride, int(position != 0),
    )  # fmt: skip
    threads = min(256, -(-table.padded_k // 32 // 32) * 32)
    shape = LaunchShape((out.shape[0], 1), threads)
    launcher.launch(Kernel("embed.cu", f"embed_{table.type}"), shape, arguments)


def embed(launcher: Launcher, out: DeviceArray, table: PackedMatrix, ids: DeviceArray) -> None:
    """Out f32[tokens, k] = table rows ids i32[tokens]; ids past the table take its last row."""
    _launch(launcher, out, table, require("ids", ids, "i32", (out.shape[0],)), 0)


def add_position(
    launcher: Launcher, x: DeviceArray, table: PackedMatrix, position: DeviceArray
) -> None:
    """X f32[tokens, k] += table rows position, position + 1, …; position i32[1]."""
    _launch(launcher, x, table, 0, require("position", position, "i32", (1,)))
