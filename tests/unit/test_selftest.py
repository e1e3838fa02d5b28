"""The self-test's arithmetic: what counts as caught, as an alarm, and as proof."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.errors import UsageError
from harness.saboteurs.registry import CONTROL, SABOTEURS
from harness.selftest import (
    CONTROL_PARTS,
    LONGEST,
    Trial,
    chosen,
    control_parts,
    planned,
    qualification,
    required_tests,
    run_trials,
)
from harness.selftest_command import JSON_NAME, MARKDOWN_NAME, as_markdown, write

NAME = "inflated-usage"
CHECK = "G4-GENUINE-COUNT"


def trial(name: str, verdict: str, **more: str) -> Trial:
    verdicts = {CHECK: verdict, **more}
    return Trial(name, verdicts, {check: f"said {v}" for check, v in verdicts.items()}, 1.0)


CLEAN = trial(CONTROL.name, "pass")


def test_caught_by_the_intended_check_and_a_clean_control_hold() -> None:
    found = qualification([NAME], [CLEAN, trial(NAME, "fail")])
    assert found.holds
    assert found.rows[0].verdict == "caught"
    assert found.control.alarms == {}


@pytest.mark.parametrize("verdict", ["pass", "error", "not_run"])
def test_anything_but_a_fail_is_a_miss(verdict: str) -> None:
    found = qualification([NAME], [CLEAN, trial(NAME, verdict, **{"G1-HTTP-SSE": "fail"})])
    assert not found.holds
    assert found.rows[0].verdict == "missed"
    assert found.rows[0].by == {"G1-HTTP-SSE": 1}


def test_one_miss_of_many_runs_is_a_miss() -> None:
    trials = [CLEAN, *[trial(NAME, "fail")] * 9, trial(NAME, "pass")]
    found = qualification([NAME], trials)
    assert (found.rows[0].caught, found.rows[0].runs) == (9, 10)
    assert not found.holds
    assert found.rows[0].miss_rate_bound == pytest.approx(0.394, abs=0.001)


@pytest.mark.parametrize("verdict", ["fail", "error"])
def test_an_alarm_of_the_control_does_not_hold(verdict: str) -> None:
    found = qualification([NAME], [trial(CONTROL.name, verdict), trial(NAME, "fail")])
    assert not found.holds
    assert found.control.alarms == {CHECK: f"said {verdict}"}


def test_a_control_that_did_not_run_the_check_is_an_alarm() -> None:
    silent = Trial(CONTROL.name, {}, {}, 1.0)
    assert not qualification([NAME], [silent, trial(NAME, "fail")]).holds
    assert not qualification([NAME], [trial(NAME, "fail")]).holds
    assert not qualification([], [CLEAN]).holds


def test_an_unproven_saboteur_does_not_hold() -> None:
    found = qualification([NAME], [CLEAN])
    assert found.rows[0].verdict == "unproven"
    assert found.rows[0].miss_rate_bound == 1.0
    assert not found.holds


def test_quick_takes_one_of_each_check() -> None:
    names = chosen((), quick=True)
    intended = [SABOTEURS[name].caught_by for name in names]
    assert sorted(set(intended)) == sorted(intended)
    assert set(intended) == {saboteur.caught_by for saboteur in SABOTEURS.values()}
    assert chosen((), quick=False) == list(SABOTEURS)
    with pytest.raises(UsageError, match="no such saboteur"):
        chosen(["nobody"], quick=False)


def test_the_plan_begins_with_the_control() -> None:
    assert required_tests(CHECK) == ("test_tokens_are_counted_alike",)
    assert planned([NAME], 2) == [(CONTROL.name, [CHECK])] * 2 + [(NAME, [CHECK])] * 2


def test_the_control_runs_in_parts_that_share_no_test() -> None:
    names = chosen((), quick=True)
    parts = control_parts([SABOTEURS[name].caught_by for name in names])
    checks = [check for part in parts for check in part]
    assert len(parts) == CONTROL_PARTS
    tests = [{test for check in part for test in required_tests(check)} for part in parts]
    assert sum(map(len, tests)) == len(set.union(*tests))
    assert sorted(checks) == sorted({saboteur.caught_by for saboteur in SABOTEURS.values()})
    plan = planned(names, 2)
    assert plan[: 2 * CONTROL_PARTS] == [(CONTROL.name, part) for part in parts] * 2
    assert plan[2 * CONTROL_PARTS][1][0] in LONGEST


def test_each_part_of_the_control_counts() -> None:
    names = chosen((), quick=True)
    parts = control_parts([SABOTEURS[name].caught_by for name in names])
    clean = [Trial(CONTROL.name, dict.fromkeys(part, "pass"), {}, 1.0) for part in parts]
    found = qualification(names, [*clean, *clean]).control
    assert (found.runs, found.clean, found.checks, found.alarms) == (2, 2, len(names), {})
    silent = replace(clean[1], verdicts=dict.fromkeys(parts[1][1:], "pass"))
    failed = replace(clean[3], verdicts={**clean[3].verdicts, parts[3][0]: "error"})
    for other, said in ((silent, {parts[1][0]: "not_run"}), (failed, {parts[3][0]: "error"})):
        run = [other if one.verdicts.keys() >= other.verdicts.keys() else one for one in clean]
        found = qualification(names, [*clean, *run]).control
        assert (found.runs, found.clean, found.alarms) == (2, 1, said)
    found = qualification(names, [*clean, *clean[:3]]).control
    assert (found.runs, found.clean) == (2, 1)
    assert found.alarms == dict.fromkeys(parts[3], "not_run")


def test_what_has_no_test_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.selftest

    monkeypatch.setattr(harness.selftest, "required_tests", lambda check: ())
    assert planned([NAME], 3) == []


def test_trials_keep_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import harness.selftest

    def quick(name: str, checks: list[str], model: Path, engine_args: tuple[str, ...]) -> Trial:
        assert engine_args == ("--threads", "1")
        time.sleep(0.05 if name == CONTROL.name else 0.0)
        return Trial(name, dict.fromkeys(checks, "fail"), {}, 0.0)

    monkeypatch.setattr(harness.selftest, "trial", quick)
    made = list(run_trials(tmp_path, planned([NAME], 1), jobs=2))
    assert [one.saboteur for one in made] == [CONTROL.name, NAME]


def test_both_files_are_written_as_the_report_reads_them(tmp_path: Path) -> None:
    write(qualification([NAME], [CLEAN, trial(NAME, "fail")]), tmp_path)
    told = json.loads((tmp_path / JSON_NAME).read_text())
    row = told["saboteurs"][0]
    assert {k: row[k] for k in ("name", "intended", "runs", "caught", "by")} == {
        "name": NAME, "intended": CHECK, "runs": 1, "caught": 1, "by": [CHECK],
    }  # fmt: skip
    assert f"| {NAME} |" in (tmp_path / MARKDOWN_NAME).read_text()


def test_the_markdown_says_what_is_unproven() -> None:
    assert "| unproven |" in as_markdown(qualification([NAME], [CLEAN]))


def test_a_trial_that_does_not_end_is_killed_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import harness.selftest

    told = tmp_path / "pid"
    child = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    class TimesOutOnceTheChildRuns(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            assert timeout is None or within(lambda: told.exists() and told.read_text())
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", TimesOutOnceTheChildRuns)
    assert harness.selftest._run([sys.executable, "-c", parent], 0.1) is False
    assert within(lambda: has_ended(int(told.read_text())))


def within(condition: Callable[[], Any], timeout_s: float = 120.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
