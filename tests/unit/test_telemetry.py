"""Telemetry is sampled often enough, sees the processes it watches, and survives the round trip."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.telemetry import Gpus, Sample, TelemetrySampler, read_telemetry, telemetry_table

WAIT_S = 120.0
BUSY = """import time
held, end = bytearray(80 << 20), time.monotonic() + 300
print("holds", flush=True)
while time.monotonic() < end: pass"""


class Waits:
    """In place of the sampler's flag: notes how long it waits, and is set at the end of these."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked_s: list[float] = []

    def clear(self) -> None:
        pass

    def set(self) -> None:
        pass

    def wait(self, timeout_s: float) -> bool:
        self.asked_s.append(timeout_s)
        return len(self.asked_s) == self.count


def test_samples_are_asked_for_ten_times_a_second_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the machine then takes them is not told here: it may be busy."""
    sampler, waits = TelemetrySampler(), Waits(30)
    monkeypatch.setattr(sampler, "_stopping", waits)
    sampler.start()
    sampler.stop()
    assert len(sampler.samples) == len(waits.asked_s) == 30
    assert 0 < max(waits.asked_s) < 0.1
    moments = [sample.monotonic_ns for sample in sampler.samples]
    assert moments == sorted(moments)
    assert sampler.peak_memory_bytes > 1 << 20
    assert (sampler.thermal_throttle, sampler.foreign_gpu_processes) == (None, 0)


def test_a_watched_process_and_its_memory_are_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            assert busy.stdout.readline() == b"holds\n"
            sampler = TelemetrySampler([busy.pid])
            sampler.start()
            deadline = time.monotonic() + WAIT_S
            while not is_busy(sampler) and time.monotonic() < deadline:
                time.sleep(0.05)
            sampler.stop()
        finally:
            busy.kill()
    assert sampler.peak_memory_bytes > 80 << 20
    assert is_busy(sampler)


def is_busy(sampler: TelemetrySampler) -> bool:
    return max((sample.cpu_percent for sample in sampler.samples), default=0.0) > 20


def test_a_process_that_ended_reads_as_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sampler = TelemetrySampler([ended.pid])
    sampler.sample()
    assert (sampler.samples[0].cpu_percent, sampler.samples[0].rss_bytes) == (0.0, 0)


def test_samples_survive_the_round_trip(tmp_path: Path) -> None:
    samples = [
        Sample(2**62, 12.5, 2**40),
        Sample(1, 0.0, 0, gpu=0, gpu_power_w=312.25, gpu_memory_bytes=2**37, gpu_clock_mhz=1980),
    ]
    assert read_telemetry(telemetry_table(samples)) == samples
    sampler = TelemetrySampler()
    sampler.samples = samples
    sampler.write_parquet(tmp_path / "t.parquet")
    assert read_telemetry((tmp_path / "t.parquet").read_bytes()) == samples
    assert sampler.peak_memory_bytes == 2**37


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_what_is_no_table_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a telemetry table"):
        read_telemetry(content)


class FakeGpus(Gpus):
    """One GPU without a power sensor, throttled, with one process that is not ours."""

    def __init__(self) -> None:
        pass

    def read(self, index: int) -> dict:
        return {"gpu_power_w": None, "gpu_percent": 50.0, "gpu_memory_bytes": 7 << 30}

    def throttled(self) -> bool | None:
        return True

    def foreign_processes(self, own: set[int]) -> int:
        return 1


def test_gpu_readings_stand_beside_the_hosts(monkeypatch) -> None:
    monkeypatch.setattr("harness.telemetry.Gpus", lambda _: FakeGpus())
    sampler = TelemetrySampler(gpu_indices=(0,))
    sampler.sample()
    host, gpu = sampler.samples
    assert (host.gpu, gpu.gpu, gpu.gpu_power_w, gpu.gpu_percent) == (-1, 0, None, 50.0)
    assert sampler.peak_memory_bytes == 7 << 30
    assert (sampler.thermal_throttle, sampler.foreign_gpu_processes) == (True, 1)
