"""The client that the user guide shows: installed by its entry point, it certifies what it can."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example_engine.py"
TESTS = "test_haiku or other_seeds_differ or stream_equals_whole or seeds_are_honoured"
PASS = (
    "G4-HAIKU",
    "G4-DETERMINISM-CONTROL",
    "G4-GENUINE-STREAM",
    "G4-GENUINE-SEED",
)


def test_the_example_is_small_and_shown() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    guide = (ROOT / "docs" / "user-guide.md").read_text()
    shown = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == EXAMPLE.read_text()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The example installed as a package is: a module and the entry point that the guide shows."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "example_engine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: example-engine\nVersion: 1.0\n"
    )
    guide = (ROOT / "docs" / "user-guide.md").read_text()
    assert '[project.entry-points."haikugate.engines"]\ntgi = "example_engine:TGIClient"\n' in guide
    entry = "[haikugate.engines]\ntgi = example_engine:TGIClient\n"
    (metadata / "entry_points.txt").write_text(entry)
    (site / "example_engine.py").write_text(EXAMPLE.read_text())
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}


def test_the_client_is_listed(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "harness.cli", "engines", "list"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "tgi          example_engine:TGIClient" in listed.stdout


def test_an_engine_of_another_api_is_judged(environment: dict[str, str], tmp_path: Path) -> None:
    engine = f"{sys.executable} -m tests.tgi_engine --model {{model}} --port {{port}}"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "harness.cli", "certify", "--engine", "tgi"),
            *("--engine-command", engine, "--proof-dir", str(tmp_path), "-k", TESTS),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 1, run.stdout[-3000:] + run.stderr[-2000:]
    (table,) = tmp_path.glob("*/checks.json")
    rows = {row["id"]: row for row in json.loads(table.read_text())["checks"]}
    assert {
        check: rows[check]["message"] for check in PASS if rows[check]["verdict"] != "pass"
    } == {}
    hidden = rows["G1-HTTP-EXECUTE"]
    assert (hidden["verdict"], hidden["message"]) == ("not_applicable", "engine kind tgi")
    assert "Behavioural profile." in run.stdout
