"""Kernels of one device: what is compiled when, and what is loaded."""

import ctypes
from typing import Any

import pytest

from kernels.compile import Unit
from kernels.context import DeviceLimits, Kernel, KernelContext
from kernels.driver import LaunchShape

LIMITS = DeviceLimits("sm_90", 132, 227 << 10)
SHAPE = LaunchShape((1, 1), 32)


class NoArguments(ctypes.Structure):
    pass


class FakeFunction:
    def launch(self, *_: Any, **__: Any) -> None:
        return


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled and loaded, in order."""
    log: list[str] = []

    class FakeModule:
        def __init__(self, cubin: bytes) -> None:
            log.append(f"load {cubin.decode()}")

        def function(self, name: str) -> FakeFunction:
            return FakeFunction()

        def unload(self) -> None:
            log.append("unload")

    def compiled(unit: Unit, architecture: str) -> bytes:
        log.append(f"compile {unit.entries[0]}")
        return unit.entries[0].encode()

    monkeypatch.setattr("kernels.context.Module", FakeModule)
    monkeypatch.setattr("kernels.context.cached_cubin", compiled)
    return log


def test_others_are_compiled_at_once_and_loaded_when_they_are_launched(done: list[str]) -> None:
    large = Kernel("gemm.cu", "large", "large")
    small = Kernel("gemm.cu", "small", "small", (Kernel("gemm.cu", "small", "small"), large))
    context = KernelContext(LIMITS, n_threads=1)
    with context.recording() as kernels:
        context.launch(small, SHAPE, NoArguments())
    context.prepare(kernels)
    assert done == ["compile small", "compile large", "load small"]
    context.launch(large, SHAPE, NoArguments())
    context.launch(large, SHAPE, NoArguments())
    context.launch(small, SHAPE, NoArguments())
    assert done[3:] == ["load large"]
    context.close()
    assert done[4:] == ["unload"] * 2


def test_two_entries_of_a_unit_are_compiled_and_loaded_once(done: list[str]) -> None:
    context = KernelContext(LIMITS)
    context.prepare([Kernel("a.cu", "one", "code"), Kernel("a.cu", "two", "code")])
    context.prepare([Kernel("a.cu", "one", "code")])
    assert done == ["compile code", "load code"]
