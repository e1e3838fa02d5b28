"""Energy comes from a sensor or is unknown; it is never zero by default."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.energy import NoMeter, NvmlCounterMeter, NvmlPowerMeter, RaplMeter, open_meter


def _zone(root: Path, energy_uj: int) -> Path:
    zone = root / "intel-rapl:0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    return zone


def test_rapl_counts_microjoules(tmp_path: Path) -> None:
    _zone(tmp_path, 100)
    meter = RaplMeter(tmp_path)
    meter.start()
    _zone(tmp_path, 250_100)
    assert meter.stop() == {"intel-rapl:0": 0.25}


def test_rapl_survives_one_wrap_of_the_counter(tmp_path: Path) -> None:
    _zone(tmp_path, 900_000)
    meter = RaplMeter(tmp_path)
    meter.start()
    _zone(tmp_path, 100_000)
    assert meter.stop() == {"intel-rapl:0": pytest.approx(0.2)}


def test_without_zones_rapl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no intel-rapl zone"):
        RaplMeter(tmp_path)


def test_no_sensor_means_unknown_energy_with_its_reason() -> None:
    meter = NoMeter("nothing to read")
    meter.start()
    assert meter.stop() is None
    assert meter.accuracy == "nothing to read"


COUNTER_STEP_J = 0.001


class _Nvml(SimpleNamespace):
    """A GPU that draws 50 W: its counter follows the clock."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return int(time.monotonic() * 50_000)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 50_000


@pytest.mark.parametrize("meter_class", [NvmlCounterMeter, NvmlPowerMeter])
def test_gpu_meters_agree_on_a_constant_load(meter_class: Any) -> None:
    meter, moments = meter_class(_Nvml(), (0, 1)), [time.monotonic()]
    meter.start()
    moments.append(time.monotonic())
    time.sleep(0.2)
    moments.append(time.monotonic())
    joules = meter.stop()
    moments.append(time.monotonic())
    outer_s, inner_s = moments[3] - moments[0], moments[2] - moments[1]
    assert set(joules) == {"gpu0", "gpu1"}
    assert 50 * inner_s - COUNTER_STEP_J <= joules["gpu0"] <= 50 * outer_s + COUNTER_STEP_J


def test_a_gpu_that_is_not_there_gives_a_reason_not_a_number() -> None:
    meter = open_meter((0,))
    meter.start()
    if meter.source == "none":
        assert meter.stop() is None
        assert "NVML" in meter.accuracy
    else:
        assert meter.stop() is not None
