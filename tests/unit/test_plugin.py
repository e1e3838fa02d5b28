"""The plugin in an ordinary run: what is certified, an area, one gate, nothing asked for."""

import pytest

from tests.unit.gate_project import (
    ALL_PASS,
    SUITE,
    GateProject,
    changed,
    check_toml,
    write_checklists,
)


def test_a_gate_whose_every_check_passes_is_certified(project: GateProject) -> None:
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts() == ALL_PASS
    assert project.bundle.checks["certified"] is True
    result.stdout.fnmatch_lines(["haikugate gate 4*profile cpu*", "CERTIFIED: 7 of 7 applicable*"])


def test_an_area_runs_alone_and_is_no_certificate(project: GateProject) -> None:
    result = project.run(marker="two")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["PASSED, not a certificate: 1 of 1 *"])
    assert project.bundle.checks["certified"] is False


def test_a_lower_gate_is_judged_alone(project: GateProject) -> None:
    assert project.run(marker="gate1").ret == 0
    assert project.verdicts() == {"G1-ONE": "pass", "G1-TWO": "pass"}


def test_nothing_is_judged_where_no_gate_is_asked_for(project: GateProject) -> None:
    result = project.pytester.runpytest_subprocess("--profile", "cpu", "--model", "model.gguf")
    assert result.ret == 0
    assert not (project.folder / "proofs").exists()


def test_without_a_gate_an_observation_is_judged_on_the_spot(project: GateProject) -> None:
    project.suite(changed('observe(seen="two")', 'observe(verdict="fail")'))
    result = project.pytester.runpytest_subprocess("--profile", "cpu", "--model", "model.gguf")
    result.assert_outcomes(passed=4, failed=1)


def test_a_bundle_of_the_run_verifies(
    project: GateProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.checklist import load_checklists
    from harness.observation import Finding, Observation, Verdict
    from harness.verification import Status, VerifyOptions
    from harness.verify import verify_bundle

    def judge(observation: Observation, limits: object) -> Finding:
        verdict = Verdict(observation.facts.get("verdict", "pass"))
        return Finding(verdict, f"saw {dict(observation.facts)}", {})

    assert project.run().ret == 0
    monkeypatch.setattr("harness.gates.JUDGES", dict.fromkeys(ALL_PASS, judge))
    checklists = load_checklists(project.folder / "checklists")
    verification = verify_bundle(project.bundle.path, VerifyOptions(checklists=checklists))
    failed = [step for step in verification.steps if step.status == Status.FAILS]
    assert not failed


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["serial", "workers"])
def test_a_folder_elsewhere_given_to_an_option_hides_nothing_of_the_project(
    project: GateProject, tmp_path_factory: pytest.TempPathFactory, workers: tuple[str, ...]
) -> None:
    project.pytester.makeini("[pytest]\naddopts = --strict-markers\ntestpaths = suites\n")
    (project.folder / "test_elsewhere.py").write_text("raise ImportError('never to be collected')")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    result = project.run("--proof-dir", str(elsewhere), *workers)
    assert result.ret == 0, result.stdout.str()
    (bundle,) = elsewhere.iterdir()
    assert '"nodeid":"suites/test_gates.py::test_two"' in (bundle / "attempts.ndjson").read_text()


def test_what_is_only_reported_fails_no_test(project: GateProject) -> None:
    speed = check_toml("G4-THREE", {"cuda": ["test_speed"], "any": ["test_speed"]})
    speed = speed.replace('where = ["cuda", "any"]', 'where = ["cuda"]\nreported = ["any"]')
    write_checklists(project.folder / "checklists", extra=speed)
    slow = '@pytest.mark.check("G4-THREE")\ndef test_speed(observe):\n    observe(verdict="fail")\n'
    project.suite(f"{SUITE}\n{slow}")
    result = project.run()
    assert result.ret == 0
    result.assert_outcomes(passed=6)
    (check,) = [check for check in project.bundle.checks["checks"] if check["id"] == "G4-THREE"]
    assert check["verdict"] == "not_applicable"
    assert "numbers reported, not judged" in check["message"]
    assert check["tests"][0]["verdict"] == "fail", "and yet it is told"
