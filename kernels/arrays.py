"""Device arrays as the launchers see them: a pointer with dtype, shape and row stride."""

from dataclasses import dataclass
from math import prod
from typing import Any

from kernels.errors import KernelArgumentError

ITEM_BYTES = {"u8": 1, "f16": 2, "i32": 4, "f32": 4, "u64": 8, "f64": 8}


@dataclass(frozen=True)
class DeviceArray:
    """`shape` items of `dtype` at device address `pointer`; does not own the memory.

    The last axis is contiguous; consecutive rows of a 2-D array are `row_stride` items apart
    (0 = shape[-1], contiguous).
    """

    pointer: int
    dtype: str
    shape: tuple[int, ...]
    row_stride: int = 0

    @property
    def stride(self) -> int:
        """Items from one row to the next."""
        return self.row_stride or self.shape[-1]

    @property
    def size_bytes(self) -> int:
        """Bytes of a contiguous array of this shape."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    def rows(self, start: int, stop: int) -> "DeviceArray":
        """Rows [start, stop) of a 2-D array."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise KernelArgumentError(f"rows [{start}, {stop}) are outside {self.shape[0]} rows")
        offset = start * self.stride * ITEM_BYTES[self.dtype]
        shape = (stop - start, *self.shape[1:])
        return DeviceArray(self.pointer + offset, self.dtype, shape, self.row_stride)

    def columns(self, start: int, stop: int) -> "DeviceArray":
        """Columns [start, stop) of a 2-D array, no copy."""
        if not 0 <= start <= stop <= self.shape[-1]:
            raise KernelArgumentError(f"columns [{start}, {stop}) are outside {self.shape[-1]}")
        pointer = self.pointer + start * ITEM_BYTES[self.dtype]
        return DeviceArray(pointer, self.dtype, (*self.shape[:-1], stop - start), self.stride)


def device_array(array: Any) -> DeviceArray:
    """The view of a C-contiguous CuPy array; raises KernelArgumentError for other layouts."""
    interface = array.__cuda_array_interface__
    dtype = {"|u1": "u8", "<f2": "f16", "<i4": "i32", "<f4": "f32", "<u8": "u64", "<f8": "f64"}.get(
        interface["typestr"]
    )
    if dtype is None:
        raise KernelArgumentError(f"dtype {interface['typestr']} is none of {sorted(ITEM_BYTES)}")
    if interface.get("strides") is not None:
        raise KernelArgumentError("the array is not C-contiguous; make it so before a launch")
    return DeviceArray(interface["data"][0], dtype, tuple(interface["shape"]))


def require(
    name: str,
    array: DeviceArray,
    dtype: str,
    shape: tuple[int | None, ...],
    *,
    strided: bool = False,
) -> int:
    """Check one argument and return its pointer; None in `shape` matches any length.

    Raises KernelArgumentError naming the argument, what was wanted and what came.
    """
    if array.dtype != dtype:
        raise KernelArgumentError(f"{name}: wanted dtype {dtype}, got {array.dtype}")
    if array.shape != shape and not _is_like(array.shape, shape):
        wanted = tuple("*" if n is None else n for n in shape)
        raise KernelArgumentError(f"{name}: wanted shape {wanted}, got {array.shape}")
    if not strided and array.row_stride not in (0, array.shape[-1]):
        raise KernelArgumentError(f"{name}: rows must be contiguous, got stride {array.stride}")
    if array.pointer % ITEM_BYTES[dtype] or (array.pointer == 0 and prod(array.shape)):
        raise KernelArgumentError(f"{name}: {array.pointer:#x} is no address of {dtype} items")
    return array.pointer


def _is_like(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        n is None or n == have for n, have in zip(wanted, shape, strict=True)
    )


def require_positive(**numbers: int) -> None:
    """Raise KernelArgumentError unless every number is at least 1."""
    for name, number in numbers.items():
        if number < 1:
            raise KernelArgumentError(f"{name}: wanted at least 1, got {number}")
