"""Every rule of every judge is seen to fail, and to pass, by the tests of the judges.

Those tests are run once more, with each verdict that a judge reaches recorded. Checks that share
one judge's code share its cases.
"""

import inspect
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from harness.judges import JUDGES
from harness.observation import Judge
from tests.unit.judge_recorder import VARIABLE

HERE = Path(__file__).parent
ELSEWHERE = {HERE / "test_workflows.py", HERE / "test_kernels_probe.py"}
FILES = sorted({*HERE.glob("test_judges_*.py"), *ELSEWHERE} - {Path(__file__)})
ARGUMENTS = ("-q", "-p", "tests.unit.judge_recorder", "-p", "no:cacheprovider")


def rules(check: str, judge: Judge) -> Iterator[tuple[str, str, CodeType]]:
    """Check, test function (empty: any) and the code that decides on it."""
    code = inspect.unwrap(judge)
    by_test = inspect.getclosurevars(code).nonlocals.get("rules")
    if isinstance(by_test, dict):
        for test, rule in by_test.items():
            yield check, test, inspect.unwrap(rule).__code__
    else:
        yield check, "", code.__code__


def shared() -> dict[CodeType, list[tuple[str, str]]]:
    found: dict[CodeType, list[tuple[str, str]]] = defaultdict(list)
    for check, judge in JUDGES.items():
        for id_, test, code in rules(check, judge):
            found[code].append((id_, test))
    return found


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str, str]]:
    record = tmp_path_factory.mktemp("judges") / "reached.json"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *ARGUMENTS, *map(str, FILES)],
        cwd=HERE.parents[1],
        env={**os.environ, VARIABLE: str(record)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode in (0, 1), ran.stdout[-3000:]  # a failing test fails by itself
    triples = [tuple(triple) for triple in json.loads(record.read_text())]
    return {(check, name, verdict) for check, test, verdict in triples for name in (test, "")}


@pytest.mark.parametrize("verdict", ["fail", "pass"])
def test_every_rule_is_seen_to(verdict: str, reached: set[tuple[str, str, str]]) -> None:
    silent = [
        cases[0]
        for cases in shared().values()
        if not any((check, test, verdict) in reached for check, test in cases)
    ]
    assert not silent, f"no test of the judges sees these {verdict}: {silent}"
