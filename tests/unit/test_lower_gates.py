"""Lower gates that were certified elsewhere count only from a key that outlives its run."""

import pytest

from harness.keys import generate_key, read_private_key
from tests.unit.gate_project import GateProject, changed
from tests.unit.test_waivers import sign, waiver_toml


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


def test_a_waiver_below_does_not_vanish_above(pytester: pytest.Pytester) -> None:
    """A certificate with waivers certifies no lower gate: the one above would not say so."""
    project = GateProject(pytester)
    key, other, waivers = (project.folder / name for name in ("own.pem", "other.pem", "w.toml"))
    generate_key(key)
    generate_key(other)
    waivers.write_text(waiver_toml("G1-TWO") + waiver_toml("G2-ONE"))
    sign(waivers, read_private_key(other))
    trusted = ("--trust-key", f"{other}.pub", "--trust-key", f"{key}.pub")
    signed = ("--signing-key", str(key), *trusted)
    project.suite(changed('observe(seen="two")', 'observe(verdict="fail")'))
    assert project.run(*signed, "--waivers", str(waivers), marker="gate3").ret == 0
    (project.folder / "proofs").rename(project.folder / "lower")
    assert project.run("--gate-bundles", "lower", *trusted).ret == 1
    assert project.bundle.metadata["judging"]["lower_gates"] == []
