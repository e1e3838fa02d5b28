import re
from pathlib import Path

import pytest

from harness.checklist import (
    DIRECTORY,
    PLACES,
    Checklists,
    digest_lines,
    load_checklists,
    load_gates,
)
from harness.errors import ChecklistError
from harness.profiles import PROFILES, scaled
from harness.trace import Collected, trace
from tests.unit.gate_project import write_checklists

LISTS = load_checklists()
NEVER_WAIVED = {"G4-HAIKU", "G4-TRACE", "G4-GATES-1-3"}


def test_four_gates_with_every_family_written_out() -> None:
    counts = [len(gate.checks) for gate in load_gates()]
    assert counts == [30, 25, 8, 78]
    assert all(re.fullmatch(r"G[1-4](-[A-Z0-9_]+)+", id_) for id_ in LISTS.checks)
    quants = {id_ for id_ in LISTS.checks if id_.startswith("G2-QUANT-")}
    assert len(quants) == 12
    assert sum(id_.startswith("G1-KERNEL-") for id_ in LISTS.checks) == 11
    assert sum(id_.startswith("G4-GENUINE-") for id_ in LISTS.checks) == 20


def test_every_requirement_is_answered_and_every_check_answers_one() -> None:
    answered = {id_ for check in LISTS.checks.values() for id_ in check.requirements}
    assert answered == {requirement.id for requirement in LISTS.requirements}


def test_a_test_of_a_lower_gate_belongs_to_every_gate_above() -> None:
    assert LISTS.checks["G1-RNG"].marks() == ("gate1", "gate2", "gate3", "gate4", "sampling")
    assert LISTS.checks["G4-HAIKU"].marks() == ("gate4", "haiku")


def test_only_what_may_never_be_waived_is_unwaivable() -> None:
    fixed = {id_ for id_, check in LISTS.checks.items() if not check.waivable}
    genuine = {id_ for id_ in LISTS.checks if id_.startswith("G4-GENUINE-")}
    assert fixed == NEVER_WAIVED | genuine


def test_only_the_haiku_states_several_attempts() -> None:
    assert {id_: c.attempts for id_, c in LISTS.checks.items() if c.attempts != 1} == {
        "G4-HAIKU": 3
    }


def test_performance_is_reported_and_not_judged_on_a_cpu() -> None:
    for check in LISTS.checks.values():
        assert bool(check.reported) == check.id.startswith("G4-PERF-"), check.id
        assert set(check.where) <= set(PLACES)


def test_time_limits_are_stretched_on_a_cpu_and_nothing_else_is() -> None:
    limits = {"p95_ms": 100.0, "ready_s": 60.0, "min_tokens_per_s": 20.0, "ratio": 0.1}
    assert scaled(limits, PROFILES["cpu"]) == {
        "p95_ms": 500.0,
        "ready_s": 300.0,
        "min_tokens_per_s": 20.0,
        "ratio": 0.1,
    }
    assert scaled(limits, PROFILES["gpu"]) == limits
    assert scaled(limits, PROFILES["m0"]) == limits


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('subject = "engine"', 'subject = "planet"', "subject: wanted one of"),
        ('id = "G1-ONE"', 'id = "G2-ONE"', "starts with G1-"),
        ('id = "G1-ONE"', 'id = "G1-TWO"', "listed twice"),
        ('requirements = ["HG-1"]', 'requirements = ["HG-99"]', "HG-99"),
        ('requirements = ["HG-1"]', "requirements = []", "requirements is missing or empty"),
        ('where = ["any"]', 'where = ["moon"]', "where: wanted one of"),
        ('text = "must hold"\n', "", "text"),
        ('text = "must hold"\n', 'text = "x"\ncolour = 1\n', "colour"),
        ('["test_one[1]", "test_one[2]"]', '["test_one[1]", "test_one[1]"]', "listed twice"),
        ("any = [", "cuda = [", "the check is not seen there"),
        ("gate = 1", "gate = 2", "wanted gate = 1"),
        ("schema", "= schema", "not valid TOML"),
        ('text = "must hold"\n', 'text = "x"\nattempts = 0\n', "attempts"),
        ('text = "must hold"\n', 'text = "x"\nlimits = { a_s = "1" }\n', "limit a_s"),
    ],
)
def test_a_checklist_that_does_not_fit_is_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    write_checklists(tmp_path / "lists")
    path = tmp_path / "lists" / "gate1.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ChecklistError, match=re.escape(said)):
        load_checklists(tmp_path / "lists")


def test_a_missing_checklist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChecklistError, match=r"requirements\.toml: No such file"):
        load_checklists(tmp_path)


def test_recorded_digests_are_those_of_the_files() -> None:
    assert (DIRECTORY / "SHA256SUMS").read_text() == digest_lines(LISTS), (
        "after a deliberate change run: haikugate gates digests --write"
    )
    assert LISTS.edited == ()


def collected(lists: Checklists) -> list[Collected]:
    return [
        Collected(f"{check.id}::{test}", test, (check.id,))
        for check in lists.checks.values()
        for test in check.tests
    ]


def test_the_trace_finds_each_gap(tmp_path: Path) -> None:
    write_checklists(tmp_path / "lists")
    lists = load_checklists(tmp_path / "lists")
    tests = collected(lists)
    assert trace(lists, tests).finding().verdict == "pass"
    assert trace(lists, tests[1:]).finding().verdict == "not_run"
    orphan = Collected("a.py::test_b", "test_b", ())
    assert trace(lists, [*tests, orphan]).finding().verdict == "error"
    unknown = Collected("a.py::test_b", "test_b", ("G9-X",))
    assert trace(lists, [*tests, unknown]).finding().verdict == "error"
    computed = Collected("a.py::test_b", "test_b", ("G4-TRACE",))
    assert trace(lists, [*tests, computed]).finding().verdict == "error"
    assert trace(lists, tests, ["broken.py"]).finding().verdict == "error"
