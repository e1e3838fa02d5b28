"""The work of GPUs by a driver that is not there: a clock's worth of utilisation."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from harness import gpu_work
from harness.errors import LaunchError
from harness.gpu_work import GpuWork


class FakeNvml(SimpleNamespace):
    """Two GPUs: an H200's memory and a slower one; `percent` is what both are busy now."""

    NVML_CLOCK_MEM = 2
    NVMLError = RuntimeError
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)  # noqa: N815
    nvmlDeviceGetCount = staticmethod(lambda: 2)  # noqa: N815
    nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)  # noqa: N815
    nvmlDeviceGetMemoryInfo = staticmethod(lambda _: SimpleNamespace(used=8))  # noqa: N815
    nvmlDeviceGetMemoryBusWidth = staticmethod(lambda h: (6144, 384)[h])  # noqa: N815
    nvmlDeviceGetMaxClockInfo = staticmethod(lambda h, _: (3201, 1000)[h])  # noqa: N815

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=40 + handle, usedGpuMemory=8)]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.percent)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(percent=3)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu_work, "LONGEST_PERIOD_S", 0.0)
    return fake


@pytest.mark.parametrize(("pids", "wanted"), [([40], 4.917e12), ([41], 9.6e10), ([7], 4.917e12)])
def test_bandwidth_of_the_gpus_that_the_engine_holds(
    driver: FakeNvml, pids: list[int], wanted: float
) -> None:
    with GpuWork(pids) as work:
        assert work.bandwidth_bytes_per_s() == pytest.approx(wanted, rel=1e-3)


def test_only_what_is_more_than_before_is_work(driver: FakeNvml) -> None:
    with GpuWork([40]) as idle:
        time.sleep(0.1)
    assert idle.busy_s == 0
    with GpuWork([40]) as work:
        while not work.busy_s:
            driver.percent = 100
            time.sleep(0.01)
    assert work.busy_s > 0


def test_a_driver_that_does_not_tell_is_one_line(driver: FakeNvml) -> None:
    del driver.percent
    driver.NVMLError = AttributeError
    with pytest.raises(LaunchError, match="does not tell how busy"), GpuWork([40]):
        pass
