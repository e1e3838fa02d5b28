"""What NVML tells by process, and the process that fills a device, both without a GPU."""

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from harness import device_memory, vram_hog
from harness.errors import LaunchError


class FakeNvml(SimpleNamespace):
    class NVMLError(Exception):
        pass

    def __init__(self, used: list[int], processes: dict[int, int | None]) -> None:
        super().__init__()
        self.used, self.processes = used, processes
        self.nvmlInit = self.nvmlShutdown = lambda: None
        self.nvmlDeviceGetCount = lambda: 1
        self.nvmlDeviceGetHandleByIndex = lambda index: index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=self.used.pop(0) if len(self.used) > 1 else self.used[0])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=p, usedGpuMemory=n) for p, n in self.processes.items()]


def test_bytes_by_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([100], {7: 30, 8: 20, 9: None}))
    assert device_memory.held_by([7, 9]) == {0: 30}
    assert device_memory.held_by([5]) == {}
    assert device_memory.unowned_bytes(1) == 50


def test_the_least_of_the_samples_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "SAMPLE_EVERY_S", 0.0)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([90, 60, 80], {7: 30}))
    assert device_memory.unowned_bytes(3) == 30


def test_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(LaunchError, match="NVML is not installed"):
        device_memory.read_gpus()


class FakeLibrary:
    """A device of so many bytes that gives no piece larger than `largest`."""

    def __init__(self, free: int, largest: int, broken: str = "") -> None:
        self.free, self.largest, self.broken = free, largest, broken

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.broken:
                return 999
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value = self.free
            if name == "cuMemAlloc_v2":
                size = arguments[1].value
                if size > min(self.free, self.largest):
                    return 2
                self.free -= size
            return 0

        return call


def hog(library: FakeLibrary, leave: int) -> int:
    device: Any = library
    assert isinstance(device, FakeLibrary)
    return vram_hog.take_all_but(vram_hog.Driver(device, 0), leave)


def test_the_hog_leaves_little_more_than_it_should() -> None:
    library = FakeLibrary(10 << 30, 3 << 30)
    taken = hog(library, 12 << 20)
    assert library.free == (10 << 30) - taken
    assert 12 << 20 <= library.free < 14 << 20


@pytest.mark.parametrize("call", ["cuInit", "cuMemAlloc_v2"])
def test_a_failing_driver_is_named(call: str) -> None:
    with pytest.raises(LaunchError, match="CUDA error 999"):
        hog(FakeLibrary(1 << 30, 1 << 30, call), 0)


def test_a_hog_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(LaunchError, match="no CUDA driver"):
        vram_hog.main(["1"])
