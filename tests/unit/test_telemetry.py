"""Telemetry is sampled often enough, sees the processes it watches, and survives the round trip."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from harness.telemetry import Gpus, Sample, TelemetrySampler, read_telemetry, telemetry_table

BUSY = """import time
held, end = bytearray(80 << 20), time.monotonic() + 20
while time.monotonic() < end: pass"""


def test_samples_come_at_ten_a_second_or_more() -> None:
    sampler = TelemetrySampler()
    sampler.start()
    time.sleep(1.5)
    sampler.stop()
    moments = [sample.monotonic_ns for sample in sampler.samples]
    gaps_s = sorted((after - before) / 1e9 for before, after in pairwise(moments))
    assert len(moments) >= 15
    assert gaps_s[len(gaps_s) // 2] < 0.1
    assert sampler.peak_memory_bytes > 1 << 20
    assert (sampler.thermal_throttle, sampler.foreign_gpu_processes) == (None, 0)


def test_a_watched_process_and_its_memory_are_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            sampler = TelemetrySampler([busy.pid])
            sampler.start()
            time.sleep(1.0)
            sampler.stop()
        finally:
            busy.kill()
    assert sampler.peak_memory_bytes > 80 << 20
    assert max(sample.cpu_percent for sample in sampler.samples) > 20


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
