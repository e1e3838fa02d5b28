"""Norms and elementwise operations as the kernel probe launches them, beside float64."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from engine.backends.cuda_probe_arrays import Arena, Float64s, Measurement, Output
from engine.backends.cuda_probe_linears import clamped_gated, silu_gated
from kernels.arrays import DeviceArray
from kernels.elementwise import Operation, elementwise
from kernels.norm import norm

EPS = 1e-6
ROWS, WIDTH = 7, 333

Floats = NDArray[np.float32]


def _gelu(x: Float64s, _y: Float64s) -> Float64s:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


OPERATIONS: dict[Operation, Callable[[Float64s, Any], Float64s]] = {
    "copy": lambda x, y: x,
    "add": lambda x, y: x + y,
    "gelu": _gelu,
    "silu": silu_gated,
    "clamped_swiglu": clamped_gated,
}
"""Each elementwise operation in float64."""


def row_measurements(arena: Arena, seed: int) -> Iterator[Measurement]:
    """Both norms and every elementwise operation, float and half outputs."""
    rng = np.random.default_rng([seed, 2])
    x, y = ((rng.standard_normal((ROWS, WIDTH)) * 3 + 1).astype(np.float32) for _ in range(2))
    yield from _norms(arena, x, rng)
    for operation in get_args(Operation):
        yield _elementwise(arena, operation, x, y)


def _norms(arena: Arena, x: Floats, rng: np.random.Generator) -> Iterator[Measurement]:
    weight, bias = (rng.standard_normal(WIDTH).astype(np.float32) for _ in range(2))
    x64 = x.astype(np.float64)
    centred = x64 - x64.mean(1, keepdims=True)
    wants = {
        "rms": x64 / np.sqrt((x64**2).mean(1, keepdims=True) + EPS) * weight,
        "layer": centred / np.sqrt((centred**2).mean(1, keepdims=True) + EPS) * weight + bias,
    }
    x_at, weights_at = arena.put(x), (arena.put(weight), arena.put(bias))
    for name, want in wants.items():
        out, outputs = _both_forms(arena, want)
        weights = (weights_at[0], weights_at[1] if name == "layer" else None)
        launch = partial(norm, x=x_at, weights=weights, out=out, eps=EPS)
        yield Measurement("NORM", f"{name} {ROWS}x{WIDTH}", (name,), launch, outputs)


def _both_forms(
    arena: Arena, want: Float64s
) -> tuple[tuple[DeviceArray, DeviceArray], tuple[Output, Output]]:
    """A float and a half output that both want the same values."""
    (full, array), (half, half_array) = (arena.poisoned(want.shape, d) for d in ("f4", "f2"))
    return (full, half), (Output(array, want), Output(half_array, want))


def _elementwise(arena: Arena, operation: Operation, x: Floats, y: Floats) -> Measurement:
    second = None if operation in ("copy", "gelu") else arena.put(y)
    out, outputs = _both_forms(
        arena, OPERATIONS[operation](x.astype(np.float64), y.astype(np.float64))
    )
    operands = (arena.put(x), second)
    launch = partial(elementwise, operation=operation, operands=operands, out=out)
    return Measurement("ACT", f"{operation} {ROWS}x{WIDTH}", (operation,), launch, outputs)
