"""Energy of a run, from a sensor or not at all: NVML counter, NVML power, RAPL, else a reason.

Sources in order of preference. Energy is never estimated: where no sensor answers, `NoMeter` says
why and the result's energy fields are null.
"""

import contextlib
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Protocol

RAPL_ROOT = Path("/sys/class/powercap")
POLL_INTERVAL_S = 0.05


class EnergyMeter(Protocol):
    """Joules by device between `start` and `stop`; None where there is no sensor."""

    source: str
    accuracy: str

    def start(self) -> None: ...

    def stop(self) -> dict[str, float] | None: ...


class NvmlCounterMeter:
    """The GPU's own energy counter (`nvmlDeviceGetTotalEnergyConsumption`, millijoules)."""

    source = "nvml-counter"
    accuracy = "counter resolution 1 mJ, updated about every 100 ms; vendor states ±5 %"

    def __init__(self, nvml: ModuleType, indices: tuple[int, ...]) -> None:
        self._nvml = nvml
        self._handles = {f"gpu{i}": nvml.nvmlDeviceGetHandleByIndex(i) for i in indices}
        self._started_mj = self._read_mj()

    def _read_mj(self) -> dict[str, int]:
        read = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        return {name: int(read(handle)) for name, handle in self._handles.items()}

    def start(self) -> None:
        """Take the counters' starting values."""
        self._started_mj = self._read_mj()

    def stop(self) -> dict[str, float]:
        """Joules used by each GPU since `start`."""
        return {name: (mj - self._started_mj[name]) / 1e3 for name, mj in self._read_mj().items()}


class NvmlPowerMeter:
    """GPU power polled at 20 Hz and integrated by the trapezoid rule."""

    source = "nvml-power"
    accuracy = "power polled at 20 Hz, trapezoid; sensor averages over up to 1 s"

    def __init__(self, nvml: ModuleType, indices: tuple[int, ...]) -> None:
        self._nvml = nvml
        self._handles = {f"gpu{i}": nvml.nvmlDeviceGetHandleByIndex(i) for i in indices}
        self._joules: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._read_w()

    def _read_w(self) -> dict[str, float]:
        read = self._nvml.nvmlDeviceGetPowerUsage
        return {name: read(handle) / 1e3 for name, handle in self._handles.items()}

    def start(self) -> None:
        """Start polling in a thread."""
        self._joules = dict.fromkeys(self._handles, 0.0)
        self._stopping.clear()
        first = time.monotonic(), self._read_w()
        self._thread = threading.Thread(target=self._poll, args=first, name="energy", daemon=True)
        self._thread.start()

    def _poll(self, before_s: float, before_w: dict[str, float]) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(POLL_INTERVAL_S)
            now_s, now_w = time.monotonic(), self._read_w()
            for name, power_w in now_w.items():
                self._joules[name] += (before_w[name] + power_w) / 2 * (now_s - before_s)
            before_s, before_w = now_s, now_w

    def stop(self) -> dict[str, float]:
        """Joules used by each GPU since `start`."""
        self._stopping.set()
        if self._thread:
            self._thread.join()
        return self._joules


class RaplMeter:
    """CPU package energy from the kernel's powercap counters (microjoules, they wrap)."""

    source = "rapl"
    accuracy = "package counter, 61 µJ units; other processes on the CPU are included"

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        self._zones = {zone.name: zone for zone in sorted(root.glob("intel-rapl:[0-9]"))}
        if not self._zones:
            raise OSError(f"no intel-rapl zone in {root}")
        self._started_uj = self._read_uj()

    def _read_uj(self) -> dict[str, int]:
        return {n: int((z / "energy_uj").read_text()) for n, z in self._zones.items()}

    def start(self) -> None:
        """Take the counters' starting values."""
        self._started_uj = self._read_uj()

    def stop(self) -> dict[str, float]:
        """Joules used by each package since `start`, one wrap allowed for."""
        joules = {}
        for name, now_uj in self._read_uj().items():
            used_uj = now_uj - self._started_uj[name]
            if used_uj < 0:
                used_uj += int((self._zones[name] / "max_energy_range_uj").read_text())
            joules[name] = used_uj / 1e6
        return joules


class NoMeter:
    """No sensor: energy is unknown, and `accuracy` holds the reason."""

    source = "none"

    def __init__(self, reason: str) -> None:
        self.accuracy = reason

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Energy is unknown."""
        return


def open_meter(gpu_indices: tuple[int, ...] = ()) -> EnergyMeter:
    """The best meter for these GPUs, or for the CPU where none is given."""
    return _gpu_meter(gpu_indices) if gpu_indices else _cpu_meter()


def _cpu_meter() -> EnergyMeter:
    try:
        return RaplMeter()
    except (OSError, ValueError) as error:
        return NoMeter(f"no readable CPU energy counter: {error}")


def _gpu_meter(gpu_indices: tuple[int, ...]) -> EnergyMeter:
    try:
        import pynvml
    except ImportError:
        return NoMeter("NVML is not installed: pip install 'haikugate[cuda13]'")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return NoMeter(f"NVML does not start: {error}")
    for meter in (NvmlCounterMeter, NvmlPowerMeter):
        with contextlib.suppress(pynvml.NVMLError):
            return meter(pynvml, gpu_indices)
    return NoMeter("the GPU offers neither an energy counter nor a power reading")
