"""Checklists, waivers and lower gates of a run."""

from datetime import timedelta

from harness.keys import generate_key
from tests.unit.gate_project import CHECKS, SUITE, GateProject, changed, write_checklists
from tests.unit.test_waivers import TODAY, sign, waiver_toml


def test_an_edited_checklist_blocks_the_certificate(project: GateProject) -> None:
    path = project.folder / "checklists" / "gate1.toml"
    path.write_text(path.read_text().replace('"test_one[1]", ', ""))
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*blocked: gate1.toml differs from its recorded digest*"])


def test_an_unreadable_checklist_is_a_harness_error(project: GateProject) -> None:
    (project.folder / "checklists" / "gate1.toml").write_text("this is = = not toml")
    assert project.run().ret == 3


def test_two_tests_of_one_name_for_one_check_are_an_error(project: GateProject) -> None:
    (project.folder / "suites" / "test_more.py").write_text(
        SUITE.split('@pytest.mark.check("G1-TWO"', 1)[0]
    )
    assert project.run().ret == 1
    assert project.verdicts()["G4-TRACE"] == "error"


def test_a_check_without_a_test_is_not_run(project: GateProject) -> None:
    write_checklists(project.folder / "checklists", {**CHECKS, "G4-THREE": {"any": []}})
    assert project.run().ret == 1
    assert project.verdicts()["G4-THREE"] == "not_run"
    assert project.verdicts()["G4-TRACE"] == "not_run"


def test_checks_outside_the_profile_are_not_applicable_and_their_tests_do_not_run(
    project: GateProject,
) -> None:
    checks = {**CHECKS, "G4-THREE": {"cuda": ["test_gpu"]}}
    write_checklists(project.folder / "checklists", checks)
    project.suite(
        SUITE + '\n@pytest.mark.check("G4-THREE")\ndef test_gpu(observe):\n    raise OSError\n'
    )
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts()["G4-THREE"] == "not_applicable"


def test_waivers_need_a_second_trusted_key(project: GateProject) -> None:
    own, second = project.folder / "own.pem", project.folder / "second.pem"
    keys = {path: generate_key(path) for path in (own, second)}
    waivers = project.folder / "waivers.toml"
    waivers.write_text(waiver_toml("G1-TWO"))
    project.suite(
        changed('observe(seen="two")', 'observe(verdict="fail")').replace(
            '"G1-TWO", "G2-ONE"', '"G1-TWO"'
        )
        + '\n@pytest.mark.check("G2-ONE")\n'
        "def test_second(observe):\n    observe(seen=2)\n"
    )
    write_checklists(project.folder / "checklists", {**CHECKS, "G2-ONE": {"any": ["test_second"]}})
    arguments = ("--waivers", str(waivers), "--signing-key", str(own))
    for path, wanted in ((own, 3), (second, 0)):
        sign(waivers, keys[path])
        trust = ("--trust-key", f"{path}.pub")
        result = project.run(*arguments, *trust)
        assert result.ret == wanted, result.stdout.str()
    assert project.verdicts()["G1-TWO"] == "waived"
    assert "WITH WAIVERS" in project.bundle.checks["title"]


def test_lower_gates_come_from_bundles_of_a_trusted_key(project: GateProject) -> None:
    key = project.folder / "own.pem"
    generate_key(key)
    proofs = project.folder / "proofs"
    assert project.run("--signing-key", str(key), marker="gate3").ret == 0
    proofs.rename(project.folder / "lower")
    trust = ("--gate-bundles", "lower", "--trust-key", f"{key}.pub")
    result = project.run(*trust)
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=1, deselected=4)
    assert set(project.verdicts()) == {"G4-ONE", "G4-TRACE", "G4-GATES-1-3"}


def test_an_expired_waiver_waives_nothing(project: GateProject) -> None:
    own, second = project.folder / "own.pem", project.folder / "second.pem"
    generate_key(own)
    waivers = project.folder / "waivers.toml"
    waivers.write_text(waiver_toml("G1-TWO", issued=TODAY - timedelta(days=31)))
    sign(waivers, generate_key(second))
    project.suite(changed('observe(seen="two")', 'observe(verdict="fail")'))
    signed = ("--waivers", str(waivers), "--signing-key", str(own), "--trust-key", f"{second}.pub")
    result = project.run(*signed)
    assert result.ret == 1, result.stdout.str()
    assert project.verdicts()["G1-TWO"] == "fail"
    assert project.bundle.checks["certified"] is False


def test_a_check_that_is_listed_twice_is_a_harness_error(project: GateProject) -> None:
    path = project.folder / "checklists" / "gate1.toml"
    text = path.read_text()
    path.write_text(text + text[text.index("[[check]]") :])
    result = project.run()
    assert result.ret == 3
    result.stderr.fnmatch_lines(["*check 'G1-ONE' is listed twice*"])


def test_a_checklist_that_is_not_there_is_a_harness_error(project: GateProject) -> None:
    (project.folder / "checklists" / "gate1.toml").unlink()
    result = project.run()
    assert result.ret == 3
    result.stderr.fnmatch_lines(["*cannot read checklist*gate1.toml*"])
