"""Runs on a bad day: an engine that never comes up, a full disk, a clock that is set back."""

import json
import sys
from pathlib import Path

from tests.unit.gate_project import ALL_PASS, GateProject

SLEEPER = "import sys, time\nprint('loading', flush=True)\ntime.sleep(600)\n"
ENGINE_SUITE = """
import pytest

@pytest.mark.check("G1-ONE")
@pytest.mark.parametrize("size", [1, 2])
def test_one(engine, observe, size):
    observe(health=engine.client.health())

@pytest.mark.check("G1-TWO", "G2-ONE")
def test_two(launch_engine, observe):
    observe(health=launch_engine().client.health())

@pytest.mark.check("G3-ONE")
def test_three(observe):
    observe(seen=3)

@pytest.mark.check("G4-ONE")
def test_four(observe):
    observe(seen=4)
"""


PRINTS_FIRST = """
import time
from harness.launch.process import ProcessEngine

await_ready = ProcessEngine.await_ready

def await_line_then_ready(engine):
    while not engine.log_lines() and engine.alive():
        time.sleep(0.01)
    await_ready(engine)

ProcessEngine.await_ready = await_line_then_ready
"""


def test_an_engine_that_is_never_ready_is_given_up(project: GateProject) -> None:
    """However long the machine takes to start it: what it prints is there before time runs out."""
    conftest = project.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + PRINTS_FIRST)
    (project.folder / "sleeper.py").write_text(SLEEPER)
    project.suite(ENGINE_SUITE)
    command = f"{sys.executable} sleeper.py {{port}}"
    result = project.run("--engine-command", command, "--ready-timeout", "1.5")
    assert result.ret == 1, result.stdout.str()
    verdicts = project.verdicts()
    assert [verdicts[id_] for id_ in ("G1-ONE", "G1-TWO", "G3-ONE")] == ["error", "error", "pass"]
    result.stdout.fnmatch_lines(["*not ready after 1.5 s; last lines: loading*"])
    assert not project.bundle.incomplete


def test_a_time_to_be_ready_must_be_positive(project: GateProject) -> None:
    for given in ("0", "-1", "nan", "inf"):
        result = project.run("--ready-timeout", given)
        assert result.ret == 2
        assert "--ready-timeout: wanted seconds above 0" in result.stdout.str() + str(result.stderr)


FULL = """
import errno, os
import harness.ledger

written = []

def write(file, content):
    written.append(len(content))
    if len(written) > AFTER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return os_write(file, content)

os_write, harness.ledger.os = os.write, type("os", (), {**vars(os), "write": staticmethod(write)})
"""


def test_a_disk_that_fills_during_the_run_ends_it_without_a_verdict(project: GateProject) -> None:
    conftest = project.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + FULL.replace("AFTER", "6"))
    result = project.run()
    assert result.ret == 3, result.stdout.str()
    said = result.stdout.str() + result.stderr.str()
    assert "No space left on device" in said
    assert "CERTIFIED" not in said.replace("NOT CERTIFIED", "")
    assert project.bundle.incomplete


SET_BACK = """
import time
import harness.ledger

calls = []

def time_ns():
    calls.append(1)
    return time.time_ns() - (3_600_000_000_000 if len(calls) > 8 else 0)

harness.ledger.time = type("time", (), {**vars(time), "time_ns": staticmethod(time_ns)})
"""


def test_a_clock_that_is_set_back_changes_no_verdict(project: GateProject) -> None:
    conftest = project.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + SET_BACK)
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts() == ALL_PASS
    times = [entry["at_ns"] for entry in entries(project.bundle.path)]
    assert times != sorted(times)


def entries(bundle: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in (bundle / "attempts.ndjson").read_text().splitlines()]
