"""Memory of the GPUs as NVML tells it: in use, free, and by process."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import LaunchError

SAMPLES = 20
SAMPLE_EVERY_S = 0.05


@dataclass(frozen=True)
class GpuMemory:
    """One GPU: bytes in use, and by process id where the driver tells it."""

    index: int
    used_bytes: int
    processes: Mapping[int, int]

    @property
    def unowned_bytes(self) -> int:
        """Bytes in use that no living process holds: the driver's own, and what was left behind."""
        return self.used_bytes - sum(self.processes.values())


def read_gpus() -> list[GpuMemory]:
    """Every GPU of this machine; raises LaunchError where NVML does not answer."""
    try:
        import pynvml
    except ImportError:
        raise LaunchError("NVML is not installed: pip install 'haikugate[cuda13]'") from None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        try:
            return [_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise LaunchError(f"NVML does not answer: {error}") from None


def _read(nvml: Any, index: int) -> GpuMemory:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    processes = {
        int(one.pid): int(one.usedGpuMemory)
        for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if one.usedGpuMemory is not None
    }
    used_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return GpuMemory(index, used_bytes, processes)


def held_by(pids: Iterable[int]) -> dict[int, int]:
    """Bytes that these processes hold, by the index of the GPU; GPUs without any are left out."""
    wanted = set(pids)
    return {
        gpu.index: sum(size for pid, size in gpu.processes.items() if pid in wanted)
        for gpu in read_gpus()
        if wanted & set(gpu.processes)
    }


def unowned_bytes(samples: int = SAMPLES) -> int:
    """Bytes on all GPUs that no living process holds: the least of some samples.

    Other processes may come, go and allocate between the two readings of a sample.
    """
    least = sum(gpu.unowned_bytes for gpu in read_gpus())
    for _ in range(samples - 1):
        time.sleep(SAMPLE_EVERY_S)
        least = min(least, sum(gpu.unowned_bytes for gpu in read_gpus()))
    return least
