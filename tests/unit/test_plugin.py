import sys
from pathlib import Path

import psutil
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


def changed(old: str, new: str) -> str:
    assert old in SUITE
    return SUITE.replace(old, new)


TWO = '@pytest.mark.check("G1-TWO", "G2-ONE")\ndef test_two(observe):'


@pytest.mark.parametrize(
    ("suite", "arguments", "wanted"),
    [
        pytest.param(changed("[1, 2]", "[1]"), (), {"G1-ONE": "not_run"}, id="parameter dropped"),
        pytest.param(
            changed("[1, 2]", "[]"),
            (),
            {"G1-ONE": "error", "G4-TRACE": "not_run"},
            id="no parameters",
        ),
        pytest.param(
            changed(TWO, '@pytest.mark.skip(reason="later")\n' + TWO),
            (),
            {"G1-TWO": "not_run", "G2-ONE": "not_run"},
            id="skip",
        ),
        pytest.param(
            changed('observe(seen="two")', 'pytest.skip("now")'),
            (),
            {"G1-TWO": "not_run"},
            id="skip inside",
        ),
        pytest.param(
            changed('observe(seen="two")', 'observe(seen="two"); pytest.skip("now")'),
            (),
            {"G1-TWO": "not_run"},
            id="skip after observing",
        ),
        pytest.param(
            changed(TWO, "@pytest.mark.xfail\n" + TWO).replace(
                'observe(seen="two")', "raise ValueError"
            ),
            (),
            {"G1-TWO": "not_run"},
            id="xfail",
        ),
        pytest.param(
            changed(TWO, "@pytest.mark.xfail(strict=False)\n" + TWO),
            (),
            {"G1-TWO": "not_run"},
            id="xpass",
        ),
        pytest.param(SUITE, ("-k", "not two"), {"G1-TWO": "not_run"}, id="deselected by -k"),
        pytest.param(
            SUITE,
            ("--deselect", "suites/test_gates.py::test_two"),
            {"G1-TWO": "not_run"},
            id="deselected by name",
        ),
        pytest.param(
            changed('observe(seen="two")', "pass"), (), {"G1-TWO": "not_run"}, id="no observation"
        ),
        pytest.param(
            changed('observe(seen="two")', 'raise OSError("gone")'),
            (),
            {"G1-TWO": "error", "G2-ONE": "error"},
            id="exception",
        ),
        pytest.param(
            changed('observe(seen="two")', 'observe(seen=1); raise OSError("gone")'),
            (),
            {"G1-TWO": "error"},
            id="exception after observing",
        ),
        pytest.param(
            changed('observe(seen="two")', 'observe(verdict="fail")'),
            (),
            {"G1-TWO": "fail", "G2-ONE": "fail", "G1-ONE": "pass"},
            id="judged fail",
        ),
        pytest.param(
            changed('observe(seen="two")', 'observe(verdict="waived")'),
            (),
            {"G1-TWO": "error"},
            id="a judge that waives",
        ),
        pytest.param(
            changed('observe(seen="two")', 'observe(verdict="nonsense")'),
            (),
            {"G1-TWO": "error"},
            id="a judge that breaks",
        ),
        pytest.param(
            changed('observe(seen="two")', "observe(seen=1); observe(seen=2)"),
            (),
            {"G1-TWO": "error"},
            id="observed twice",
        ),
        pytest.param(
            changed(TWO, "@pytest.fixture\ndef broken():\n    raise OSError\n\n" + TWO).replace(
                "def test_two(observe)", "def test_two(observe, broken)"
            ),
            (),
            {"G1-TWO": "error"},
            id="fixture error",
        ),
        pytest.param(
            changed(
                TWO, "@pytest.fixture\ndef broken():\n    yield\n    raise OSError\n\n" + TWO
            ).replace("def test_two(observe)", "def test_two(observe, broken)"),
            (),
            {"G1-TWO": "error"},
            id="fixture error at the end",
        ),
        pytest.param(
            changed('observe(seen="two")', "import time; time.sleep(30)"),
            ("--timeout", "1", "--timeout-method", "signal"),
            {"G1-TWO": "error", "G3-ONE": "pass"},
            id="timeout",
        ),
        pytest.param(
            changed('"G1-TWO", "G2-ONE"', '"G1-TWOO", "G2-ONE"'),
            (),
            {"G1-TWO": "not_run", "G4-TRACE": "error"},
            id="unknown check in a mark",
        ),
        pytest.param(
            changed('mark.check("G1-TWO"', 'mark.chek("G1-TWO"'),
            (),
            {"G1-TWO": "not_run", "G4-TRACE": "error"},
            id="marker typo",
        ),
        pytest.param(
            changed("test_two", "test_too"),
            (),
            {"G1-TWO": "error", "G4-TRACE": "not_run"},
            id="test renamed",
        ),
        pytest.param(
            SUITE + "\n\ndef test_nobody():\n    pass\n",
            (),
            {"G4-TRACE": "error"},
            id="orphan test",
        ),
        pytest.param("import nothing_like_it\n", (), {"G1-ONE": "not_run"}, id="collection error"),
        pytest.param("", (), {"G1-ONE": "not_run"}, id="empty gate"),
        pytest.param(
            changed(
                'observe(seen="two")', 'import os; os.environ["PYTEST_X"] = "1"; pytest.exit("no")'
            ),
            (),
            {"G1-ONE": "pass", "G1-TWO": "error", "G4-ONE": "not_run"},
            id="pytest.exit",
        ),
        pytest.param(
            changed('observe(seen="two")', 'pytest.exit("no", returncode=0)'),
            (),
            {"G1-TWO": "error", "G4-ONE": "not_run"},
            id="pytest.exit 0",
        ),
        pytest.param(
            changed('observe(seen="two")', "raise KeyboardInterrupt"),
            (),
            {"G1-TWO": "error", "G4-ONE": "not_run"},
            id="Ctrl-C",
        ),
        pytest.param(
            changed('observe(seen="two")', 'observe(verdict="fail")'),
            ("-x",),
            {"G1-TWO": "fail", "G4-ONE": "not_run"},
            id="stopped at the first failure",
        ),
    ],
)
def test_what_is_not_observed_is_never_certified(
    project: GateProject, suite: str, arguments: tuple[str, ...], wanted: dict[str, str]
) -> None:
    project.suite(suite)
    result = project.run(*arguments)
    verdicts = project.verdicts()
    assert {id_: verdicts[id_] for id_ in wanted} == wanted, result.stdout.str()
    assert project.bundle.checks["certified"] is False
    interrupted = "pytest.exit" in suite or "KeyboardInterrupt" in suite
    assert result.ret == (130 if interrupted else 1)
    result.stdout.fnmatch_lines(["NOT CERTIFIED: *"])


@pytest.mark.parametrize(
    "arguments", [("-p", "no:assertion"), ("--assert", "plain")], ids=["no plugin", "plain"]
)
def test_a_gate_run_without_assertions_is_refused(
    project: GateProject, arguments: tuple[str, ...]
) -> None:
    result = project.run(*arguments)
    assert result.ret == 2
    assert not (project.folder / "proofs").exists()


def test_a_gate_run_with_optimized_python_is_refused(
    project: GateProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    assert project.run().ret == 2


@pytest.mark.parametrize("outcomes", ['["fail", "pass"]', '["pass", "fail"]'])
def test_a_rerun_does_not_wash_a_failure_away(project: GateProject, outcomes: str) -> None:
    conftest = project.folder / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for _ in range(2):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        item._initrequest()
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
    )
    source = changed('observe(seen="two")', "observe(verdict=VERDICTS.pop(0))")
    project.suite(f"VERDICTS = {outcomes}\n" + source)
    assert project.run().ret == 1
    assert project.verdicts()["G1-TWO"] == "fail"
    assert project.verdicts()["G1-ONE"] == "pass"


TAMPERING = {
    "reports turned to passed": """
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome = "passed"
    report.longrepr = None
    return report
""",
    "reports dropped": """
import pytest
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    report.outcome = "passed"
""",
    "exit status set": """
import pytest
def pytest_sessionfinish(session):
    session.exitstatus = 0
""",
    "tests removed": """
def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if "two" not in item.name]
""",
    "protocol skipped": """
import pytest
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    return True if "two" in item.name else None
""",
}


@pytest.mark.parametrize("plugin", TAMPERING.values(), ids=TAMPERING.keys())
def test_a_plugin_of_the_user_cannot_turn_a_verdict(project: GateProject, plugin: str) -> None:
    conftest = project.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + plugin)
    project.suite(changed('observe(seen="two")', 'observe(verdict="fail")'))
    assert project.run().ret == 1
    assert project.verdicts()["G1-TWO"] in ("fail", "not_run")
    assert project.bundle.checks["certified"] is False


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
    from tests.unit.gate_project import CHECKS, write_checklists

    write_checklists(project.folder / "checklists", {**CHECKS, "G4-THREE": {"any": []}})
    assert project.run().ret == 1
    assert project.verdicts()["G4-THREE"] == "not_run"
    assert project.verdicts()["G4-TRACE"] == "not_run"


def test_checks_outside_the_profile_are_not_applicable_and_their_tests_do_not_run(
    project: GateProject,
) -> None:
    from tests.unit.gate_project import CHECKS, write_checklists

    checks = {**CHECKS, "G4-THREE": {"cuda": ["test_gpu"]}}
    write_checklists(project.folder / "checklists", checks)
    project.suite(
        SUITE + '\n@pytest.mark.check("G4-THREE")\ndef test_gpu(observe):\n    raise OSError\n'
    )
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts()["G4-THREE"] == "not_applicable"


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


def test_workers_give_the_same_check_table(project: GateProject) -> None:
    project.suite(changed('observe(seen="two")', 'observe(verdict="fail")'))
    assert project.run().ret == 1
    alone = project.bundle.checks
    for path in list((project.folder / "proofs").iterdir()):
        path.rename(project.folder / "alone")
    result = project.run("-n", "2")
    assert result.ret == 1, result.stdout.str()
    assert project.bundle.checks["verdict_line"] == alone["verdict_line"]
    table = [(check["id"], check["verdict"], check["message"]) for check in alone["checks"]]
    assert table == [(c["id"], c["verdict"], c["message"]) for c in project.bundle.checks["checks"]]


def test_workers_can_certify(project: GateProject) -> None:
    result = project.run("-n", "2")
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts() == ALL_PASS


def test_a_crashed_worker_is_an_error(project: GateProject) -> None:
    project.suite(changed('observe(seen="two")', "import os; os._exit(3)"))
    result = project.run("-n", "2")
    assert result.ret == 1, result.stdout.str()
    assert project.verdicts()["G1-TWO"] == "error"
    result.stdout.fnmatch_lines(["*blocked: worker gw* crashed*"])


def test_a_killed_run_leaves_an_incomplete_bundle(project: GateProject) -> None:
    project.suite(changed('observe(seen="two")', "import os; os._exit(0)"))
    project.run()
    assert project.bundle.incomplete


def test_sigterm_stops_the_engine_and_leaves_an_incomplete_bundle(project: GateProject) -> None:
    engine = Path(__file__).parent.parent / "canned_engine.py"
    project.suite(
        "import os, signal, time, pytest\n"
        '@pytest.mark.check("G1-TWO", "G2-ONE")\n'
        "def test_two(engine, observe):\n"
        "    open('pids', 'w').write(f'{engine.pid} {engine._guardian.pid}')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    command = f"{sys.executable} {engine} --port {{port}} --model {{model}}"
    result = project.run("--engine-command", command)
    assert result.ret == 130, result.stdout.str()
    assert "ended by SIGTERM; INCOMPLETE" in result.stdout.str()
    assert project.bundle.incomplete
    engine_pid, guardian_pid = map(int, (project.folder / "pids").read_text().split())
    assert not psutil.pid_exists(engine_pid)
    assert not psutil.pid_exists(guardian_pid)


def test_a_bundle_of_the_run_verifies(
    project: GateProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.checklist import load_checklists
    from harness.observation import Finding, Observation, Verdict
    from harness.verify import Status, VerifyOptions, verify_bundle

    def judge(observation: Observation, limits: object) -> Finding:
        verdict = Verdict(observation.facts.get("verdict", "pass"))
        return Finding(verdict, f"saw {dict(observation.facts)}", {})

    assert project.run().ret == 0
    monkeypatch.setattr("harness.gates.JUDGES", dict.fromkeys(ALL_PASS, judge))
    checklists = load_checklists(project.folder / "checklists")
    verification = verify_bundle(project.bundle.path, VerifyOptions(checklists=checklists))
    failed = [step for step in verification.steps if step.status == Status.FAILS]
    assert not failed


def test_waivers_need_a_second_trusted_key(project: GateProject) -> None:
    from harness.keys import generate_key
    from tests.unit.test_waivers import sign, waiver_toml

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
    from tests.unit.gate_project import CHECKS, write_checklists

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
    from harness.keys import generate_key

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
