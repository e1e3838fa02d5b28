"""Kernels of one device: what is compiled when, and what is loaded."""

import ctypes
from typing import Any

import pytest

from kernels.compile import Unit
from kernels.context import DeviceLimits, Kernel, KernelContext
from kernels.driver import LaunchShape
from kernels.errors import KernelLaunchError

REFUSED: set[str] = set()
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
            if name in REFUSED:
                raise KernelLaunchError(f"finding kernel {name}: CUDA error 2", 2)
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


@pytest.mark.parametrize("already_used", [False, True], ids=["alone", "beside-another"])
def test_a_module_whose_entry_was_refused_is_not_asked_again(
    done: list[str], monkeypatch: pytest.MonkeyPatch, already_used: bool
) -> None:
    """A real driver, asked again, hands out an entry whose launches all fail."""
    one, two = Kernel("a.cu", "one", "code"), Kernel("a.cu", "two", "code")
    context = KernelContext(LIMITS)
    if already_used:
        context.prepare([one])
    with monkeypatch.context() as full:
        full.setattr("tests.unit.test_kernels_context.REFUSED", {"two"})
        for _ in range(3):
            with pytest.raises(KernelLaunchError, match="two"):
                context.launch(two, SHAPE, NoArguments())
    context.launch(two, SHAPE, NoArguments())
    context.launch(one, SHAPE, NoArguments())
    loads, unloads = done.count("load code"), done.count("unload")
    assert (loads, unloads) == (4, 2 if already_used else 3)
    context.close()
    assert done.count("unload") == loads
