"""`haikugate selftest` for real: one saboteur and the control, from launch to both files."""

import json
import subprocess
import sys
from pathlib import Path

from harness.models import resolve


def test_a_saboteur_is_caught_and_the_control_is_clean(tmp_path: Path) -> None:
    model = resolve("smollm2-135m-instruct")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "harness.cli", "selftest", "--only", "inflated-usage"),
            *("--model", str(model), "--output", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    told = json.loads((tmp_path / "qualification.json").read_text())
    assert told["holds"] is True
    assert told["control"]["alarms"] == {}
    row = told["saboteurs"][0]
    assert (row["name"], row["runs"], row["caught"]) == ("inflated-usage", 1, 1)
    assert "G4-GENUINE-COUNT" in row["by"]


def test_an_unknown_saboteur_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "harness.cli", "selftest", "--only", "nobody"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 2
    assert "no such saboteur" in run.stderr
