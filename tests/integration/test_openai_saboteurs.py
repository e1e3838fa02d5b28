"""Engines that cheat, judged through the OpenAI API: the checks meant to catch them do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.certify import PLAIN, SUITES


def verdicts(saboteur: str, tests: str, folder: Path) -> dict[str, str]:
    """One gate run against this saboteur; its verdicts on what was observed."""
    engine = f"{sys.executable} -m harness.saboteurs {saboteur} --model {{model}} --port {{port}}"
    run = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                *PLAIN,
                "-q",
                str(SUITES),
                "-m",
                "gate4",
                "-k",
                tests,
            ),
            *("--engine", "openai", "--engine-command", engine, "--proof-dir", str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 1, run.stdout[-3000:] + run.stderr[-2000:]
    (table,) = folder.glob("*/checks.json")
    rows = json.loads(table.read_text())["checks"]
    quiet = ("not_applicable", "not_run")
    return {row["id"]: row["verdict"] for row in rows if row["verdict"] not in quiet}


@pytest.mark.parametrize(
    ("saboteur", "tests", "caught_by"),
    [
        (
            "constant-seed",
            "other_seeds_differ or seeds_are_honoured or test_haiku",
            {"G4-DETERMINISM-CONTROL": "fail", "G4-GENUINE-SEED": "fail", "G4-HAIKU": "fail"},
        ),
        (
            "other-whole-answer",
            "official_client or stream_equals_whole",
            {"G1-API-OPENAI": "fail", "G4-GENUINE-STREAM": "fail"},
        ),
        (
            "other-whole-answer",
            "test_texts_come_through",
            {
                "G4-UTF8-EMOJI": "pass",
                "G4-UTF8-SCRIPTS": "pass",
                "G4-UTF8-STREAM-EQUALS-FULL": "fail",
            },
        ),
    ],
)
def test_a_cheat_is_caught(
    saboteur: str, tests: str, caught_by: dict[str, str], tmp_path: Path
) -> None:
    assert verdicts(saboteur, tests, tmp_path) == caught_by


def test_the_honest_proxy_is_not(tmp_path: Path) -> None:
    tests = "official_client or seeds_are_honoured or stream_equals_whole or test_baseline"
    found = verdicts("honest-proxy", tests, tmp_path)
    assert found == dict.fromkeys(("G1-API-OPENAI", "G4-GENUINE-STREAM", "G4-GENUINE-SEED"), "pass")
