from pathlib import Path

import pytest

from tests.unit.gate_project import SUITE, GateProject

ALL_PASS = {
    "G1-ONE": "pass",
    "G1-TWO": "pass",
    "G2-ONE": "pass",
    "G3-ONE": "pass",
    "G4-ONE": "pass",
    "G4-TRACE": "pass",
    "G4-GATES-1-3": "pass",
}


@pytest.fixture
def project(pytester: pytest.Pytester) -> GateProject:
    return GateProject(pytester)


def test_a_gate_whose_every_check_passes_is_certified(project: GateProject) -> None:
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts() == ALL_PASS
    assert project.bundle.checks["certified"] is True
    result.stdout.fnmatch_lines(["haikugate gate 4*profile cpu*", "CERTIFIED: 7 of 7 applicable*"])
