"""Telemetry of a run at 20 Hz: CPU, memory, and for each GPU power, utilisation, memory, clock."""

import contextlib
import io
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import psutil

CHILDREN_EVERY_S = 1.0
INTERVAL_S = 0.05
"""Twice as often as the 10 Hz that evidence asks for, so that a late wake-up still keeps it."""


@dataclass(frozen=True)
class Sample:
    """One reading of one device; `gpu` is -1 for a reading of the host alone.

    `monotonic_ns` is the clock of the transcripts. `cpu_percent` and `rss_bytes` are sums over the
    watched processes and their children (100 % is one core). What no sensor tells is None.
    """

    monotonic_ns: int
    cpu_percent: float
    rss_bytes: int
    gpu: int = -1
    gpu_power_w: float | None = None
    gpu_percent: float | None = None
    gpu_memory_bytes: int | None = None
    gpu_clock_mhz: int | None = None


class ProcessTree:
    """Processes that are watched, with the children they have at each reading."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)
        self._known: dict[int, psutil.Process] = {}
        self._looked_s = -math.inf

    def _processes(self) -> list[psutil.Process]:
        if time.monotonic() - self._looked_s > CHILDREN_EVERY_S:
            self._look_for_children()
        return list(self._known.values())

    def _look_for_children(self) -> None:
        """Finding children reads every process of the system: milliseconds, so not each time."""
        found: dict[int, psutil.Process] = {}
        for pid in self._pids:
            with contextlib.suppress(psutil.Error):
                root = self._known.get(pid) or psutil.Process(pid)
                for process in (root, *root.children(recursive=True)):
                    found[process.pid] = self._known.get(process.pid, process)
        self._known, self._looked_s = found, time.monotonic()

    def read(self) -> tuple[float, int]:
        """CPU in percent of one core since the last reading, and resident bytes."""
        percent, rss_bytes = 0.0, 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                percent += process.cpu_percent()
                rss_bytes += process.memory_info().rss
        return percent, rss_bytes


def _optional(read: Callable[[], Any], error: type[Exception]) -> Any:
    try:
        return read()
    except error:
        return None


class Gpus:
    """GPUs by NVML index."""

    def __init__(self, indices: Sequence[int]) -> None:
        import pynvml

        nvml: Any = pynvml
        nvml.nvmlInit()
        self._nvml = nvml
        self._handles = {index: nvml.nvmlDeviceGetHandleByIndex(index) for index in indices}

    def read(self, index: int) -> dict[str, Any]:
        """Power, utilisation, used memory and SM clock of one GPU, None where it does not tell."""
        nvml, handle = self._nvml, self._handles[index]
        readings: dict[str, Callable[[], Any]] = {
            "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "gpu_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "gpu_memory_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "gpu_clock_mhz": lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        }
        return {name: _optional(read, nvml.NVMLError) for name, read in readings.items()}

    def throttled(self) -> bool | None:
        """Whether any GPU is held back by heat or power now; None if none tells."""
        nvml = self._nvml
        held_back = (
            nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
            | nvml.nvmlClocksThrottleReasonSwPowerCap
        )
        read = nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        reasons = [_optional(partial(read, h), nvml.NVMLError) for h in self._handles.values()]
        known = [reason for reason in reasons if reason is not None]
        return any(reason & held_back for reason in known) if known else None

    def foreign_processes(self, own: set[int]) -> int:
        """How many compute processes on these GPUs are none of our own."""
        read = self._nvml.nvmlDeviceGetComputeRunningProcesses
        pids: set[int] = set()
        for handle in self._handles.values():
            found = _optional(partial(read, handle), self._nvml.NVMLError) or []
            pids.update(process.pid for process in found)
        return len(pids - own)


class TelemetrySampler:
    """A thread that samples between `start` and `stop`; `watch` adds processes while it runs."""

    def __init__(self, pids: Sequence[int] | None = None, gpu_indices: Sequence[int] = ()) -> None:
        self._pids = [psutil.Process().pid] if pids is None else list(pids)
        self._gpus = Gpus(gpu_indices) if gpu_indices else None
        self._indices = tuple(gpu_indices)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._tree = ProcessTree(self._pids)
        self.samples: list[Sample] = []
        self.thermal_throttle: bool | None = None
        self.foreign_gpu_processes = 0

    def watch(self, pids: Sequence[int]) -> None:
        """Sample these processes from now on, in place of those before."""
        self._pids = list(pids)
        self._tree = ProcessTree(self._pids)

    def start(self) -> None:
        """Begin sampling."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end the thread."""
        self._stopping.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(INTERVAL_S)
            self.sample()

    def sample(self) -> None:
        """Read every sensor once."""
        percent, rss_bytes = self._tree.read()
        now_ns = time.monotonic_ns()
        self.samples.append(Sample(now_ns, percent, rss_bytes))
        if self._gpus is None:
            return
        for index in self._indices:
            reading = self._gpus.read(index)
            self.samples.append(Sample(now_ns, percent, rss_bytes, index, **reading))
        self._look_for_disturbance(self._gpus)

    def _look_for_disturbance(self, gpus: Gpus) -> None:
        throttled = gpus.throttled()
        if throttled is not None:
            self.thermal_throttle = bool(self.thermal_throttle) or throttled
        own = {psutil.Process().pid, *self._pids}
        self.foreign_gpu_processes = max(self.foreign_gpu_processes, gpus.foreign_processes(own))

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory seen: of a GPU where one is sampled, else resident."""
        used = [sample.gpu_memory_bytes or 0 for sample in self.samples if sample.gpu >= 0]
        return max(used or [sample.rss_bytes for sample in self.samples], default=0)

    def write_parquet(self, path: Path) -> None:
        """All samples, one row each."""
        path.write_bytes(telemetry_table(self.samples))


def telemetry_table(samples: Sequence[Sample]) -> bytes:
    """The samples as a Parquet file, one column a field of `Sample`."""
    import pyarrow
    import pyarrow.parquet

    rows = [asdict(sample) for sample in samples]
    kinds = {"int": pyarrow.int64(), "float": pyarrow.float64()}
    schema = pyarrow.schema(
        [
            (f.name, kinds[str(getattr(f.type, "__name__", f.type)).split(" ")[0]])
            for f in fields(Sample)
        ]
    )
    sink = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=schema), sink, compression="zstd"
    )
    return sink.getvalue()


def read_telemetry(content: bytes) -> list[Sample]:
    """The inverse of `telemetry_table`; raises ValueError for another file or other columns."""
    import pyarrow
    import pyarrow.parquet

    try:
        # without Arrow's thread pool: torn down at exit it can abort the process
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read(use_threads=False)
        return [Sample(**row) for row in table.to_pylist()]
    except (pyarrow.ArrowException, TypeError, OSError) as error:
        raise ValueError(f"not a telemetry table: {error}") from error
