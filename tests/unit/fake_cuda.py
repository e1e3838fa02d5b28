"""A CuPy without a GPU: addresses are numbers, kernels are only checked and counted."""

import ctypes
from collections import Counter
from typing import Any

from kernels.driver import LaunchShape


class FakeRuntimeError(Exception):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class FakeAttributes:
    def __init__(self, kind: int) -> None:
        self.type = kind
        self.device = 0


class FakeRuntime:
    CUDARuntimeError = FakeRuntimeError

    def __init__(self, total_bytes: int = 1 << 37) -> None:
        self.total_bytes = total_bytes
        self.held: dict[int, int] = {}
        self.managed: set[int] = set()
        self.next = 1 << 32

    def malloc(self, size: int) -> int:
        if sum(self.held.values()) + size > self.total_bytes:
            raise FakeRuntimeError("cudaErrorMemoryAllocation: out of memory", 2)
        pointer, self.next = self.next, self.next + -(-size // 512) * 512
        self.held[pointer] = size
        return pointer

    def mallocManaged(self, size: int) -> int:  # noqa: N802
        pointer = self.malloc(size)
        self.managed.add(pointer)
        return pointer

    def free(self, pointer: int) -> None:
        del self.held[pointer]

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self.total_bytes - sum(self.held.values()), self.total_bytes

    def pointerGetAttributes(self, pointer: int) -> FakeAttributes:  # noqa: N802
        return FakeAttributes(3 if pointer in self.managed else 2)

    def getDevice(self) -> int:  # noqa: N802
        return 0

    def setDevice(self, device: int) -> None:  # noqa: N802
        return

    def _inside(self, pointer: int, size: int) -> None:
        assert any(p <= pointer and pointer + size <= p + n for p, n in self.held.items()), pointer

    def memcpy(self, to: int, source: int, size: int, kind: int) -> None:
        self._inside(to if kind == 1 else source, size)

    def memcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        for pointer in {1: (to,), 2: (source,), 3: (to, source)}[kind]:
            self._inside(pointer, size)

    def memset(self, pointer: int, value: int, size: int) -> None:
        self._inside(pointer, size)

    def streamSynchronize(self, stream: int) -> None:  # noqa: N802
        return


class FakeEvent:
    def __init__(self, disable_timing: bool = False) -> None:
        self.disable_timing = disable_timing

    def record(self, stream: Any) -> None:
        return

    def synchronize(self) -> None:
        return


class FakeGraph:
    def launch(self, stream: Any) -> None:
        return

    def upload(self, stream: Any) -> None:
        return


class FakeStream:
    ptr = 77

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def synchronize(self) -> None:
        return

    def record(self) -> FakeEvent:
        return FakeEvent()

    def begin_capture(self) -> None:
        return

    def end_capture(self) -> FakeGraph:
        return FakeGraph()


class FakeCuda:
    Stream = FakeStream
    Event = FakeEvent

    def __init__(self) -> None:
        self.runtime = FakeRuntime()

    def alloc_pinned_memory(self, size: int) -> bytearray:
        return bytearray(size)

    def get_elapsed_time(self, begin: FakeEvent, end: FakeEvent) -> float:
        assert not any(event.disable_timing for event in (begin, end))
        return 1.0


class FakePinnedPool:
    def free_all_blocks(self) -> None:
        return


class FakeCupy:
    def __init__(self) -> None:
        self.cuda = FakeCuda()

    def get_default_pinned_memory_pool(self) -> FakePinnedPool:
        return FakePinnedPool()


LAUNCHES: Counter[str] = Counter()


class FakeFunction:
    def __init__(self, name: str) -> None:
        self.name = name

    def launch(
        self, shape: LaunchShape, arguments: ctypes.Structure, stream: int, *, dependent: bool
    ) -> None:
        LAUNCHES[self.name] += 1


class FakeModule:
    def __init__(self, cubin: bytes) -> None:
        self.cubin = cubin

    def function(self, name: str) -> FakeFunction:
        return FakeFunction(name)

    def unload(self) -> None:
        return
