"""Lower gates that were certified elsewhere count only from a key that outlives its run."""

import pytest

from harness.keys import generate_key
from tests.unit.gate_project import GateProject


def test_a_bundle_of_an_ephemeral_key_certifies_no_lower_gate(
    pytester: pytest.Pytester,
) -> None:
    project = GateProject(pytester)
    assert project.run(marker="gate3").ret == 0
    lower = project.folder / "lower"
    (project.folder / "proofs").rename(lower)
    (bundle,) = lower.iterdir()
    result = project.run("--gate-bundles", "lower", "--trust-key", str(bundle / "public-key.pem"))
    assert result.ret == 0, result.stdout.str()
    assert {"G1-ONE", "G2-ONE", "G3-ONE"} <= set(project.verdicts())
    assert project.bundle.metadata["judging"]["lower_gates"] == []


def test_what_another_api_shows_certifies_no_lower_gate(pytester: pytest.Pytester) -> None:
    project = GateProject(pytester)
    key = project.folder / "own.pem"
    generate_key(key)
    signed = ("--signing-key", str(key), "--engine", "openai")
    assert project.run(*signed, marker="gate3").ret == 0
    (project.folder / "proofs").rename(project.folder / "lower")
    result = project.run("--gate-bundles", "lower", "--trust-key", f"{key}.pub")
    assert result.ret == 0, result.stdout.str()
    assert project.bundle.metadata["judging"]["lower_gates"] == []
