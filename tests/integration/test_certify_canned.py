"""`haikugate certify` on an engine that answers with canned text: never a pass."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CANNED = Path(__file__).parent.parent / "canned_engine.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proofs = tmp_path_factory.mktemp("proofs")
    engine = shlex.join([sys.executable, str(CANNED), "--port", "{port}", "--model", "{model}"])
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "suites", "-m", "haiku or http", "-q"),
            *("--engine-command", engine, "--proof-dir", str(proofs), "-p", "no:cacheprovider"),
        ],
        cwd=CANNED.parent.parent,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 1, run.stdout[-3000:] + run.stderr[-2000:]
    assert "NOT CERTIFIED" in run.stdout
    found = [path.parent for path in proofs.rglob("checks.json")]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    "check",
    [
        "G4-HAIKU",
        "G1-HTTP-HEALTH",
        "G1-HTTP-EXECUTE",
        "G1-HTTP-SSE",
        "G1-HTTP-CORRELATION",
        "G1-HTTP-VALIDATION",
        "G1-ERRORS",
        "G1-E2E",
    ],
)
def test_canned_text_fails(bundle: Path, check: str) -> None:
    assert verdicts(bundle)[check] == "fail"


def test_nothing_about_the_engine_passes(bundle: Path) -> None:
    assert "pass" not in verdicts(bundle).values()


def verdicts(bundle: Path) -> dict[str, str]:
    table = json.loads((bundle / "checks.json").read_text())
    rows = table["checks"] if isinstance(table, dict) else table
    return {row["id"]: row["verdict"] for row in rows}
