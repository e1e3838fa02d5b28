"""Two workers, an engine each, come to the verdict and the table that one process comes to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.certify import PLAIN, SUITES

AREAS = "gguf or tokenizer"


def judged(folder: Path, *workers: str) -> tuple[dict[str, str], dict[str, Any], set[str]]:
    """One run: its table of checks, its verdict with the counts, and the workers that observed."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *PLAIN, "-q", str(SUITES), "-m", AREAS),
            *("--proof-dir", str(folder), *workers),
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    (bundle,) = folder.iterdir()
    told = json.loads((bundle / "checks.json").read_text())
    attempts = (bundle / "attempts.ndjson").read_text().splitlines()
    finished = [json.loads(line)["record"] for line in attempts if '"finished"' in line]
    table = {check["id"]: check["verdict"] for check in told["checks"]}
    del told["checks"]
    return table, told, {record["worker"] for record in finished}


def test_two_workers_judge_as_one_process_does(tmp_path: Path) -> None:
    alone, verdict, workers = judged(tmp_path / "alone")
    assert set(alone.values()) <= {"pass", "not_applicable"}
    assert workers == {"main"}
    spread, same, workers = judged(tmp_path / "spread", "-n", "2")
    assert workers == {"gw0", "gw1"}
    assert spread == alone
    assert same == verdict
