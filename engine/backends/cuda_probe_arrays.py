"""What the probe of the kernels is made of: device arrays, packed matrices, measurements."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.quants import BLOCK_FORMATS
from engine.synthetic import random_blocks
from kernels.arrays import DeviceArray, device_array
from kernels.context import KernelContext, Launcher
from kernels.matrix import PackedMatrix, RowPlacement, matrix_bytes, pack_rows

QUANTIZED = tuple(name for name, form in BLOCK_FORMATS.items() if form.block_size > 1)
FLOATS = tuple(name for name, form in BLOCK_FORMATS.items() if form.block_size == 1)
REPEATS = 50
_INTEGER_POISON = 0x7F

Float64s = NDArray[np.float64]
Raw = NDArray[np.uint8]


class Arena:
    """Keeps CuPy arrays alive while their DeviceArray views are used."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.held: list[Any] = []

    def put(self, values: NDArray[Any]) -> DeviceArray:
        """A copy of a host array."""
        array = self.cupy.asarray(np.ascontiguousarray(values))
        self.held.append(array)
        return device_array(array)

    def poisoned(self, shape: tuple[int, ...], dtype: str = "f4") -> tuple[DeviceArray, Any]:
        """An output that is NaN (floats) or 0x7f bytes (integers) until a kernel writes it."""
        array = self.cupy.empty(shape, dtype)
        poison(array)
        self.held.append(array)
        return device_array(array), array

    def packed(
        self,
        context: KernelContext,
        type_name: str,
        raws: Sequence[Raw],
        shape: tuple[int, int, int],
    ) -> PackedMatrix:
        """A matrix of shape (rows, k, tile_rows), one expert for each of `raws`."""
        rows, k, tile_rows = shape
        size = matrix_bytes(type_name, rows, k, tile_rows) * len(raws)
        tiles, array = self.poisoned((size,), "u1")
        array.fill(0)
        matrix = PackedMatrix(type_name, rows, k, tile_rows, tiles, len(raws))
        for expert, raw in enumerate(raws):
            pack_rows(context, self.put(raw), matrix, RowPlacement(), expert)
        return matrix


def poison(array: Any) -> None:
    """Fill an array with what no kernel writes: NaN, or bytes of 0x7f."""
    if array.dtype.kind == "f":
        array.fill(float("nan"))
    else:
        array.view("u1").fill(_INTEGER_POISON)


def whole_width(type_name: str, k: int) -> int:
    """The largest row width up to `k` that the type can have, at least one block."""
    unit = max(BLOCK_FORMATS[type_name].block_size, 4)
    return max(unit, k // unit * unit)


def random_rows(rng: np.random.Generator, type_name: str, rows: int, k: int) -> Raw:
    """uint8[rows, row_bytes]: random GGUF rows of noise of standard deviation 1/√k."""
    n_blocks = rows * k // BLOCK_FORMATS[type_name].block_size
    blocks = random_blocks(rng, type_name, k, n_blocks)
    return np.ascontiguousarray(blocks).reshape(rows, -1)


def dequantized(type_name: str, raw: Raw) -> Float64s:
    """The rows' weights in float64."""
    return np.asarray(BLOCK_FORMATS[type_name].dequantize(raw), np.float64)


@dataclass(frozen=True)
class Output:
    """What a kernel writes, what float64 gives, and what stands there before (None: poison)."""

    array: Any
    want: Float64s
    start: NDArray[Any] | None = None


@dataclass(frozen=True)
class Measurement:
    """One launch as an engine makes it, of kernel `kernel`, that `covers` these features."""

    kernel: str
    name: str
    covers: tuple[str, ...]
    launch: Callable[[Launcher], None]
    outputs: tuple[Output, ...]


def measured(cupy: Any, context: KernelContext, one: Measurement) -> dict[str, Any]:
    """Its numbers: error and reference norms of each output, and how many repeats differ."""
    digests = set()
    for _ in range(REPEATS):
        for output in one.outputs:
            _reset(cupy, output)
        one.launch(context)
        digests.add(hashlib.sha256(b"".join(o.array.get().tobytes() for o in one.outputs)).digest())
    return {
        "kernel": one.kernel,
        "name": one.name,
        "covers": list(one.covers),
        "repeats": REPEATS,
        "distinct": len(digests),
        "outputs": [_numbers(output) for output in one.outputs],
    }


def _reset(cupy: Any, output: Output) -> None:
    if output.start is None:
        poison(output.array)
    else:
        output.array[...] = cupy.asarray(output.start)


def _numbers(output: Output) -> dict[str, Any]:
    got = np.asarray(output.array.get(), np.float64).reshape(output.want.shape)
    finite = np.isfinite(got)
    error = np.where(finite, got, 0.0) - output.want
    return {
        "n_values": int(got.size),
        "n_finite": int(finite.sum()),
        "error_norm": float(np.linalg.norm(error)),
        "max_error": float(np.abs(error).max()),
        "reference_norm": float(np.linalg.norm(output.want)),
    }
