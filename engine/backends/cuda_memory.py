"""Device memory: one capped pool of plain allocations, counted by purpose, verified on demand.

The driver hands out whole granules of 2 MiB: it is asked for whole ones, so that what is counted is
what it took. Weights, which stay until the end, share them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.backends import MemoryReport
from engine.errors import DeviceError, InsufficientMemory, OutOfMemory
from kernels.arrays import DeviceArray
from kernels.errors import OUT_OF_MEMORY

Purpose = Literal["weights", "kv", "workspace"]
_MEMORY_KINDS = {0: "unregistered host", 1: "host", 2: "device", 3: "managed"}
ALIGNMENT = 256
GRANULE_BYTES = 2 << 20
SLAB_BYTES = 4 << 20
_PACKED_BYTES = 1 << 20
"""Up to this size the driver packs allocations into one granule."""


class Allocation(TypedDict):
    """One allocation: its use, and the kind of memory that the driver says it is."""

    purpose: Purpose
    bytes: int
    pointer: int
    kind: str
    device: int


@dataclass
class _Slab:
    """What is left of an allocation that weights share."""

    pointer: int
    free_bytes: int


@dataclass
class DevicePool:
    """Allocations of one device, never more than `limit_bytes` in all (0 = what the card has).

    `running` turns a failed allocation from InsufficientMemory (at start) into OutOfMemory.
    """

    cupy: Any
    limit_bytes: int = 0
    running: bool = False
    used_bytes: dict[Purpose, int] = field(
        default_factory=lambda: {"weights": 0, "kv": 0, "workspace": 0}
    )
    _held: dict[int, tuple[Purpose, int]] = field(default_factory=dict)
    _slabs: list[_Slab] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """All bytes held."""
        return sum(self.used_bytes.values())

    def available_bytes(self) -> int:
        """Bytes that an allocation could still get: the card's free memory within the limit."""
        free: int = self.cupy.cuda.runtime.memGetInfo()[0]
        return min(free, self.limit_bytes - self.total_bytes) if self.limit_bytes else free

    def allocate(self, size_bytes: int, purpose: Purpose) -> int:
        """The address of `size_bytes` of device memory; what is near a granule takes whole ones.

        Raises InsufficientMemory, or OutOfMemory once `running`, with both byte counts.
        """
        size_bytes = _whole(size_bytes, GRANULE_BYTES if size_bytes > _PACKED_BYTES else ALIGNMENT)
        runtime = self.cupy.cuda.runtime
        if self.limit_bytes and self.total_bytes + size_bytes > self.limit_bytes:
            raise self.exhausted(size_bytes, purpose)
        try:
            pointer: int = runtime.malloc(size_bytes)
        except runtime.CUDARuntimeError as error:
            if error.status == OUT_OF_MEMORY:
                raise self.exhausted(size_bytes, purpose, refused=True) from None
            raise DeviceError(f"allocating {size_bytes} bytes for {purpose}: {error}") from None
        self._held[pointer] = (purpose, size_bytes)
        self.used_bytes[purpose] += size_bytes
        return pointer

    def keep(self, size_bytes: int) -> int:
        """The address of device memory for weights, which stay until `close`; errors as above."""
        size_bytes = _whole(size_bytes, ALIGNMENT)
        fitting = (slab for slab in self._slabs if slab.free_bytes >= size_bytes)
        slab = next(fitting, None) or self._new_slab(size_bytes)
        pointer = slab.pointer
        slab.pointer += size_bytes
        slab.free_bytes -= size_bytes
        return pointer

    def _new_slab(self, size_bytes: int) -> _Slab:
        """A slab for small arrays, or the array's own allocation, whose rest others may have."""
        wanted = _whole(size_bytes, GRANULE_BYTES)
        if wanted == GRANULE_BYTES and self.available_bytes() >= SLAB_BYTES:
            wanted = SLAB_BYTES
        slab = _Slab(self.allocate(wanted, "weights"), wanted)
        self._slabs.append(slab)
        return slab

    def exhausted(
        self, size_bytes: int, purpose: str, *, refused: bool = False
    ) -> InsufficientMemory | OutOfMemory:
        """The error of an allocation that cannot be had.

        What the driver `refused` is not available, though it may count as many bytes as free.
        """
        kind = OutOfMemory if self.running else InsufficientMemory
        required = size_bytes if self.running else self.total_bytes + size_bytes
        available = self.available_bytes()
        if refused:
            available = min(available, size_bytes - ALIGNMENT)
        if not self.running:
            available += self.total_bytes
        return kind(
            f"device memory for {purpose} is exhausted",
            required_bytes=required,
            available_bytes=max(0, available),
        )

    def array(self, shape: tuple[int, ...], dtype: str, purpose: Purpose) -> DeviceArray:
        """A fresh array, not initialised; weights cannot be freed one by one."""
        size_bytes = DeviceArray(0, dtype, shape).size_bytes
        is_kept = purpose == "weights"
        pointer = self.keep(size_bytes) if is_kept else self.allocate(size_bytes, purpose)
        return DeviceArray(pointer, dtype, shape)

    def upload(self, values: Any, purpose: Purpose) -> DeviceArray:
        """A copy of a small NumPy array (float32, float64, int32 or uint64)."""
        dtype = {"f4": "f32", "f8": "f64", "i4": "i32", "u8": "u64"}[values.dtype.str[1:]]
        array = self.array(values.shape, dtype, purpose)
        self.write(array, values)
        return array

    def write(self, array: DeviceArray, values: Any) -> None:
        """Copy a C-contiguous NumPy array of the same size over a device array, synchronously."""
        if values.nbytes != array.size_bytes or not values.flags["C_CONTIGUOUS"]:
            raise DeviceError(f"upload of {values.nbytes} bytes into {array.size_bytes}")
        self.cupy.cuda.runtime.memcpy(array.pointer, values.ctypes.data, values.nbytes, 1)
        self.cupy.cuda.runtime.streamSynchronize(0)

    def read(self, array: DeviceArray) -> NDArray[np.float32]:
        """A copy of a float32 array; what was queued to write it must be done."""
        values = np.empty(array.shape, np.float32)
        self.cupy.cuda.runtime.memcpy(values.ctypes.data, array.pointer, values.nbytes, 2)
        return values

    def zero(self, array: DeviceArray) -> None:
        """Fill an array with zero bytes."""
        self.cupy.cuda.runtime.memset(array.pointer, 0, array.size_bytes)

    def free(self, pointer: int) -> None:
        """Give one allocation back."""
        purpose, size_bytes = self._held.pop(pointer)
        self.used_bytes[purpose] -= size_bytes
        self.cupy.cuda.runtime.free(pointer)

    def close(self) -> None:
        """Give everything back."""
        self._slabs.clear()
        for pointer in list(self._held):
            self.free(pointer)

    def report(self) -> MemoryReport:
        """Bytes that the driver took, by purpose."""
        return MemoryReport(
            self.used_bytes["weights"],
            self.used_bytes["kv"],
            self.used_bytes["workspace"],
            self.limit_bytes,
        )

    def adopt_managed_page(self) -> None:
        """Fault injection: count a managed allocation as workspace, as a leak would."""
        pointer: int = self.cupy.cuda.runtime.mallocManaged(ALIGNMENT)
        self._held[pointer] = ("workspace", ALIGNMENT)
        self.used_bytes["workspace"] += ALIGNMENT

    def described(self) -> Iterator[Allocation]:
        """What the driver says of every allocation."""
        runtime = self.cupy.cuda.runtime
        for pointer, (purpose, size_bytes) in self._held.items():
            attributes = runtime.pointerGetAttributes(pointer)
            kind = _MEMORY_KINDS.get(attributes.type, str(attributes.type))
            yield {
                "purpose": purpose,
                "bytes": size_bytes,
                "pointer": pointer,
                "kind": kind,
                "device": int(attributes.device),
            }

    def verify(self) -> int:
        """Check that every allocation is plain device memory; returns how many were checked.

        Raises DeviceError naming the first that is not.
        """
        device = self.cupy.cuda.runtime.getDevice()
        for one in self.described():
            if one["kind"] != "device" or one["device"] != device:
                raise DeviceError(
                    f"residency: {one['bytes']} bytes of {one['purpose']} at {one['pointer']:#x} "
                    f"are {one['kind']} memory of device {one['device']}, wanted device memory "
                    f"of device {device}"
                )
        return len(self._held)


def _whole(size_bytes: int, unit_bytes: int) -> int:
    """The least multiple of a unit, at least one, that holds so many bytes."""
    return max(1, -(-size_bytes // unit_bytes)) * unit_bytes
