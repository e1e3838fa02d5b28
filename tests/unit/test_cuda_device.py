"""CUDA devices: their names, and what is refused before a model is read."""

from types import SimpleNamespace

import pytest

from engine.backends import cuda_device
from engine.backends.cuda_device import (
    architecture_of,
    check_capability,
    check_versions,
    open_device,
    parse_device,
)
from engine.errors import DeviceError
from kernels.errors import KernelCompileError, KernelLaunchError


@pytest.mark.parametrize("bad", ["cuda:x", "cuda:-1", "gpu", "cuda:0:1", "cuda:9999"])
def test_a_wrong_device_name_is_refused(bad: str) -> None:
    with pytest.raises(DeviceError, match="wanted cuda:N"):
        parse_device(bad)


def test_a_machine_without_a_driver_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise KernelLaunchError("no CUDA driver on this machine")

    monkeypatch.setattr(cuda_device, "driver_version", missing)
    with pytest.raises(DeviceError, match="no CUDA driver"):
        open_device("cuda:0")


def test_an_index_past_the_last_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: 13000, getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError
    )
    fake = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(cuda_device, "driver_version", lambda: 13000)
    monkeypatch.setattr(cuda_device, "import_cupy", lambda: fake)
    with pytest.raises(DeviceError, match="this machine has 1 CUDA device"):
        open_device("cuda:1")


def test_a_machine_without_nvrtc_says_so_before_a_model_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = {"name": b"card", "major": 9, "minor": 0}
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: 13000, getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError,
        setDevice=lambda index: None, getDeviceProperties=lambda index: properties,
    )  # fmt: skip

    def missing() -> tuple[int, int]:
        raise KernelCompileError("NVRTC is not installed")

    monkeypatch.setattr(cuda_device, "driver_version", lambda: 13000)
    fake = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(cuda_device, "import_cupy", lambda: fake)
    monkeypatch.setattr(cuda_device, "nvrtc_version", missing)
    with pytest.raises(DeviceError, match="--device cuda:0: NVRTC is not installed"):
        open_device("cuda:0")


def test_old_drivers_and_old_cards_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"driver supports CUDA 12\.4, the toolkit is 13\.0"):
        check_versions(12040, 13000)
    check_versions(13000, 12080)
    with pytest.raises(DeviceError, match=r"7\.5"):
        check_capability("Turing", (7, 5))
    check_capability("Ampere", (8, 0))


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_86"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_120"),
    ],
)
def test_the_newest_fitting_architecture_is_compiled_for(
    capability: tuple[int, int], architecture: str
) -> None:
    assert architecture_of(capability) == architecture
