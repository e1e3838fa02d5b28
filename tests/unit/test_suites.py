"""The suites and the checklists agree: no test is orphaned, none can go unnoticed."""

from functools import cache
from pathlib import Path

import pytest

from harness.certify import SUITES
from harness.checklist import load_checklists
from harness.gate_commands import collect

FILES = sorted(SUITES.rglob("test_*.py"))
FIX = "run: haikugate gates observations --write && haikugate gates digests --write"


@cache
def collected(path: Path) -> dict[str, list[str]]:
    return collect([path])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_test_of_a_suite_is_required_by_its_checks(path: Path) -> None:
    checks = load_checklists().checks
    for id_, tests in collected(path).items():
        assert id_ in checks
        assert not set(tests) - checks[id_].tests, f"{id_}: {FIX}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_deleting_a_suite_leaves_a_check_without_its_observation(path: Path) -> None:
    checks = load_checklists().checks
    lost = {test for tests in collected(path).values() for test in tests}
    others = {t for p in FILES if p != path for tests in collected(p).values() for t in tests}
    assert any(check.tests & (lost - others) for check in checks.values()), path.name


def test_every_listed_test_exists() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        for id_, tests in collected(path).items():
            found.setdefault(id_, set()).update(tests)
    for id_, check in load_checklists().checks.items():
        assert not check.tests - found.get(id_, set()), f"{id_}: {FIX}"
