"""Whatever keeps a check from being observed keeps the gate from being certified."""

import sys

import pytest

from tests.unit.gate_project import SUITE, GateProject, changed

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
            SUITE, ("-m", "gate4 and not two"), {"G1-TWO": "not_run"}, id="deselected by -m"
        ),
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
            changed(TWO, "@pytest.mark.timeout(1)\n" + TWO).replace(
                'observe(seen="two")', "import time; time.sleep(600)"
            ),
            ("--timeout", "600", "--timeout-method", "signal"),
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
            changed(
                'observe(seen="two")',
                "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
            ),
            (),
            {"G1-TWO": "error", "G4-ONE": "not_run"},
            id="SIGINT",
        ),
        pytest.param(
            changed("[1, 2]", '[1, 2], ids=["1", "1"]'),
            (),
            {"G1-ONE": "error", "G1-TWO": "pass"},
            id="duplicate id",
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
    interrupted = any(word in suite for word in ("pytest.exit", "KeyboardInterrupt", "SIGINT"))
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


def test_a_gate_run_of_python_with_o_is_refused(project: GateProject) -> None:
    arguments = ("-m", "gate4", "--profile", "cpu", "--model", "model.gguf")
    result = project.pytester.run(sys.executable, "-O", "-m", "pytest", *arguments)
    assert result.ret == 2
    assert not (project.folder / "proofs").exists()
