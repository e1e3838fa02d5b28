"""Launchers of moe.cu: routing of a chunk of tokens to experts."""

import ctypes
from dataclasses import dataclass

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.structure import INT, POINTER, fields

MAX_EXPERTS, MAX_CHOSEN = 256, 32


class MoeArguments(ctypes.Structure):
    """moe.cu: MoeArgs."""

    _fields_ = [
        *fields(POINTER, "logits experts routing entries first_row y x"),
        *fields(INT, "tokens n_experts chosen width x_stride add"),
    ]


@dataclass(frozen=True)
class Routing:
    """Which experts each token takes: experts, routing, entries [tokens · chosen], first_row."""

    experts: DeviceArray
    routing: DeviceArray
    entries: DeviceArray
    first_row: DeviceArray
    n_experts: int
    chosen: int


def route(launcher: Launcher, logits: DeviceArray, routing: Routing) -> None:
    """Fill `routing` from router logits f32[tokens, n_experts]; raises KernelArgumentError."""
    tokens, n_experts, chosen = logits.shape[0], routing.n_experts, routing.chosen
    if not 1 <= chosen <= min(n_experts, MAX_CHOSEN) or n_experts > MAX_EXPERTS:
        raise KernelArgumentError(
            f"experts: wanted 1 <= chosen <= {MAX_CHOSEN}, at most {MAX_EXPERTS} experts, "
            f"got {chosen} of {n_experts}"
        )
    arguments = MoeArguments(
        require("logits", logits, "f32", (tokens, n_experts)),
        require("experts", routing.experts, "i32", (tokens * chosen,)),
        require("routing", routing.routing, "f32", (tokens * chosen,)),
        require("entries", routing.entries, "i32", (tokens * chosen,)),
        require("first_row", routing.first_row, "i32", (n_experts + 1,)),
        0, 0, tokens, n_experts, chosen, 0, 0, 0,
    )  # fmt: skip
    route_shape = LaunchShape((-(-tokens // 4), 1), 128)
    launcher.launch(Kernel("moe.cu", "moe_route"), route_shape, arguments)
    launcher.launch(Kernel("moe.cu", "moe_group"), LaunchShape((n_experts, 1), 1024), arguments)


def combine(launcher: Launcher, y: DeviceArray, x: DeviceArray, chosen: int, *, add: bool) -> None:
    """X f32[tokens, width] (+)= Σ of y f32[tokens · chosen, width] over each token's choices."""
    tokens, width = x.shape
    arguments = MoeArguments(
        0, 0, 0, 0, 0,
        require("y", y, "f32", (tokens * chosen, width)),
        require("x", x, "f32", (tokens, width), strided=True),
        tokens, 0, chosen, width, x.stride, int(add),
    )  # fmt: skip
    shape = LaunchShape((-(-width // 256), tokens), 256)
    launcher.launch(Kernel("moe.cu", "moe_combine"), shape, arguments)
