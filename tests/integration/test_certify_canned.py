"""`haikugate certify` on an engine that answers with canned text: never a pass."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = "test_haiku or test_http or test_validation or test_reference_accepts_every_token"
UNSEEN = {"G4-GENUINE-LATE", "G4-GENUINE-PROCESS"}
"""What canned text cannot break: one process, and the same answer early and late."""
CANNED = Path(__file__).parent.parent / "canned_engine.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proofs = tmp_path_factory.mktemp("proofs")
    engine = shlex.join([sys.executable, str(CANNED), "--port", "{port}", "--model", "{model}"])
    run = subprocess.run(
        [
            *(sys.executable, "-m", "harness.cli", "certify", "-k", TESTS),
            *("--engine-command", engine, "--proof-dir", str(proofs)),
        ],
        cwd=CANNED.parent.parent,
        capture_output=True,
        text=True,
        timeout=900,
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
        "G4-GENUINE-RESCORE",
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
    passed = {check for check, verdict in verdicts(bundle).items() if verdict == "pass"}
    assert passed <= UNSEEN


def verdicts(bundle: Path) -> dict[str, str]:
    table = json.loads((bundle / "checks.json").read_text())
    rows = table["checks"] if isinstance(table, dict) else table
    return {row["id"]: row["verdict"] for row in rows}
