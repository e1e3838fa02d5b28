"""The CUDA driver's module and launch calls, by ctypes.

CuPy's launch cannot ask for programmatic dependent launch, which decoding depends on.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from kernels.errors import KernelLaunchError

_PROGRAMMATIC_STREAM_SERIALIZATION = 6
_MAX_DYNAMIC_SHARED_SIZE = 8
_PREFERRED_SHARED_CARVEOUT = 9


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16)]


class _Config(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared_bytes")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("n_attributes", ctypes.c_uint),
    ]


_DEPENDENT = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, (ctypes.c_int * 16)(1))


@dataclass(frozen=True)
class LaunchShape:
    """Grid and block sizes, and the dynamic shared memory of a block in bytes."""

    grid: tuple[int, int]
    block: int
    shared_bytes: int = 0


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise KernelLaunchError(f"no CUDA driver on this machine ({error})") from None


@cache
def _launch() -> Any:
    """The launch call; it keeps the GIL: it takes microseconds, getting the GIL back may not."""
    _library()
    return ctypes.PyDLL("libcuda.so.1").cuLaunchKernelEx


def check(status: int, what: str) -> None:
    """Raise KernelLaunchError with the driver's own words unless `status` is success."""
    if status == 0:
        return
    text = ctypes.c_char_p()
    _library().cuGetErrorString(status, ctypes.byref(text))
    words = (text.value or b"unknown error").decode()
    raise KernelLaunchError(f"{what}: CUDA error {status}, {words}", status)


def driver_version() -> int:
    """The CUDA version the driver supports, 1000 · major + 10 · minor."""
    version = ctypes.c_int()
    check(_library().cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    return version.value


class Module:
    """A loaded cubin; needs a current CUDA context."""

    def __init__(self, cubin: bytes) -> None:
        self._handle = ctypes.c_void_p()
        check(
            _library().cuModuleLoadData(ctypes.byref(self._handle), cubin),
            "loading a compiled kernel",
        )

    def function(self, name: str) -> "Function":
        """An entry of the module by name."""
        handle = ctypes.c_void_p()
        status = _library().cuModuleGetFunction(ctypes.byref(handle), self._handle, name.encode())
        check(status, f"finding kernel {name}")
        return Function(name, handle)

    def unload(self) -> None:
        """Free the module's code on the device."""
        check(_library().cuModuleUnload(self._handle), "unloading a kernel module")


class Function:
    """A kernel that takes one argument structure by value."""

    def __init__(self, name: str, handle: ctypes.c_void_p) -> None:
        self.name = name
        self._handle = handle
        self._shared_bytes = 0
        self._set(_PREFERRED_SHARED_CARVEOUT, 100)

    def _set(self, attribute: int, value: int) -> None:
        status = _library().cuFuncSetAttribute(self._handle, attribute, value)
        check(status, f"kernel {self.name}: attribute {attribute} = {value}")

    def launch(
        self, shape: LaunchShape, arguments: ctypes.Structure, stream: int, *, dependent: bool
    ) -> None:
        """Queue one launch; `dependent` lets it start while the launch before it finishes.

        Raises KernelLaunchError where the driver refuses it.
        """
        if shape.shared_bytes > self._shared_bytes:
            self._set(_MAX_DYNAMIC_SHARED_SIZE, shape.shared_bytes)
            self._shared_bytes = shape.shared_bytes
        config = _Config(
            *shape.grid, 1, shape.block, 1, 1, shape.shared_bytes, stream,
            ctypes.addressof(_DEPENDENT), 1 if dependent else 0,
        )  # fmt: skip
        parameters: Any = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        status = _launch()(ctypes.byref(config), self._handle, parameters, None)
        check(status, f"launching {self.name} on a grid of {shape.grid} x {shape.block} threads")
