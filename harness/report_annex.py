"""The report's anti-cheat annex: what was measured of the harness itself, from shipped data."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from harness.calibration import shipped_calibration
from harness.observation import Json
from harness.strict_json import loads

QUALIFICATION: Final = Path(__file__).with_name("qualification.json")
HONEST: Final = "honest"


@lru_cache(maxsize=1)
def shipped_qualification() -> dict[str, Json]:
    """The detection matrix of this version: each saboteur's trials against its intended check."""
    found: dict[str, Json] = loads(QUALIFICATION.read_bytes(), QUALIFICATION.name)
    return found


def calibration_view() -> dict[str, Any]:
    """The shipped calibration as tables: honest runs with their thresholds, and rates of error."""
    calibration = shipped_calibration()
    pairings = [
        {**vars(pairing), "margin_bound": pairing.margin_bound}
        for _, pairing in sorted(calibration.pairings.items())
    ]
    rates = [
        {"pairing": pairing, "engine": name, **row}
        for pairing, rows in sorted(calibration.table["rates"].items())
        for name, row in sorted(rows.items(), key=lambda item: (item[0] != HONEST, item[0]))
    ]
    return {
        "sha256": calibration.sha256,
        "pairings": pairings,
        "rates": rates,
        "rated": {row["engine"] for row in rates},
        "notes": sorted(calibration.table["notes"].items()),
    }


def calibrations_used(checks: Json) -> list[tuple[str, bool]]:
    """The calibrations that judges went by, from their numbers: digest, and whether custom."""
    numbers = (test.get("numbers", {}) for check in checks["checks"] for test in check["tests"])
    used = {
        (str(table["calibration_sha256"]), bool(table["custom_calibration"]))
        for table in numbers
        if "calibration_sha256" in table
    }
    return sorted(used)
