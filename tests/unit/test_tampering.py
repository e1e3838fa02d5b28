"""Plug-ins and conftests that meddle with a run cannot turn its verdict."""

import pytest

from tests.unit.gate_project import GateProject, changed


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
