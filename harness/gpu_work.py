"""What an engine's GPUs can do and did, as NVML tells it: memory bandwidth, and time at work."""

import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from harness.device_memory import held_by
from harness.errors import LaunchError

SAMPLE_EVERY_S = 0.02
LONGEST_PERIOD_S = 1.2
"""A reading is the mean of a period of up to a second that has ended."""


class GpuWork:
    """The work, between enter and exit, of the GPUs that some processes hold memory of.

    Where the driver does not tell who holds memory, all GPUs count. What they were doing before is
    taken off. Raises LaunchError where NVML is not there, or does not tell (a part of a GPU).
    """

    def __init__(self, pids: Iterable[int]) -> None:
        indices = held_by(pids)
        import pynvml

        self._nvml: Any = pynvml
        self._nvml.nvmlInit()
        known = indices or range(self._nvml.nvmlDeviceGetCount())
        self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in known]
        self.busy_s = 0.0
        self._ended = threading.Event()

    def bandwidth_bytes_per_s(self) -> float:
        """What the fastest of these memories can deliver: two words of the bus a clock."""
        return max(self._bandwidth(handle) for handle in self._handles)

    def _bandwidth(self, handle: Any) -> float:
        nvml = self._nvml
        clock_hz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
        width_bits = float(nvml.nvmlDeviceGetMemoryBusWidth(handle))
        return 2.0 * float(clock_hz) * width_bits / 8

    def _busy(self) -> float:
        """The share of the last period in which the busiest GPU had a kernel running."""
        read = self._nvml.nvmlDeviceGetUtilizationRates
        return max(float(read(handle).gpu) for handle in self._handles) / 100

    def _sample(self, before: float) -> None:
        last_s = time.monotonic()
        while not self._ended.wait(SAMPLE_EVERY_S):
            now_s = time.monotonic()
            self.busy_s += max(0.0, self._busy() - before) * (now_s - last_s)
            last_s = now_s

    def __enter__(self) -> "GpuWork":
        time.sleep(LONGEST_PERIOD_S)
        try:
            told = (self._busy(),)
        except self._nvml.NVMLError as error:
            self._nvml.nvmlShutdown()
            raise LaunchError(f"NVML does not tell how busy the GPU is: {error}") from None
        self._sampler = threading.Thread(target=self._sample, args=told, name="gpu-work")
        self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        time.sleep(LONGEST_PERIOD_S if kind is None else 0)
        self._ended.set()
        self._sampler.join()
        self._nvml.nvmlShutdown()
