"""A process that takes a GPU's memory: `python -m harness.vram_hog LEAVE_BYTES [DEVICE]`.

It allocates until at most LEAVE_BYTES are free, prints one line with what it holds and what is
free, and holds on until its standard input closes. Plain allocations of the driver API, by ctypes.
"""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import LaunchError

_STEP_BYTES = 2 << 20
_LARGEST_BYTES = 1 << 36
_OUT_OF_MEMORY = 2


class Driver:
    """The few calls of libcuda that allocating takes; LaunchError says which one failed."""

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self._library = library
        self._call("cuInit", 0)
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(handle), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise LaunchError(f"vram hog: {name} failed with CUDA error {status}")

    def free_bytes(self) -> int:
        """Bytes of the device that nobody holds."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size_bytes: int) -> bool:
        """Hold so many bytes more; False if the device has not got them in one piece."""
        pointer = ctypes.c_uint64()
        status = self._library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        if status not in (0, _OUT_OF_MEMORY):
            raise LaunchError(f"vram hog: cuMemAlloc failed with CUDA error {status}")
        return bool(status == 0)


def take_all_but(driver: Driver, leave_bytes: int) -> int:
    """Allocate until at most `leave_bytes` are free, or no piece fits; returns bytes taken."""
    taken, piece = 0, _LARGEST_BYTES
    while piece >= _STEP_BYTES:
        spare = driver.free_bytes() - leave_bytes
        if spare < piece or not driver.allocate(piece):
            piece //= 2
            continue
        taken += piece
    return taken


@contextmanager
def vram_hog(leave_bytes: int, device: int = 0) -> Iterator[dict[str, int]]:
    """Another process holds the GPU's memory inside; yields `held_bytes` and `free_bytes`."""
    command = [sys.executable, "-m", "harness.vram_hog", str(leave_bytes), str(device)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hog:
        assert hog.stdout is not None
        words = hog.stdout.readline().split()
        if len(words) != 2:
            raise LaunchError(f"vram hog: it ended before it held anything (code {hog.wait()})")
        yield {"held_bytes": int(words[0]), "free_bytes": int(words[1])}


def main(arguments: list[str]) -> int:
    """Take the memory, say so, and wait for the end of standard input."""
    leave_bytes, device = int(arguments[0]), int(arguments[1]) if arguments[1:] else 0
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise LaunchError(f"vram hog: no CUDA driver on this machine ({error})") from None
    driver = Driver(library, device)
    taken = take_all_but(driver, leave_bytes)
    print(taken, driver.free_bytes(), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
