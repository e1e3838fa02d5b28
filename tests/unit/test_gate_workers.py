"""Workers of pytest-xdist, and runs that end by force."""

import sys
from pathlib import Path

import psutil

from tests.unit.gate_project import ALL_PASS, GateProject, changed


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
