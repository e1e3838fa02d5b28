"""Deleting any one file of the suites: the lowest gate it served is no longer certified."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.checklist import load_checklists
from harness.gates import JudgeContext, judge_check, judge_gate
from harness.judges import JUDGES
from harness.observation import Finding, Limits, Observation, Verdict
from harness.outcome import Attempt, CheckResult
from tests.unit.test_suites import FILES, collected

PROFILES = ("cpu", "gpu", "m0")


def _content_with_all(observation: Observation, limits: Limits) -> Finding:
    return Finding(Verdict.PASS, "whatever was seen")


def judged(files: Iterable[Path], profile: str, checks: frozenset[str]) -> dict[str, CheckResult]:
    """What these files' tests show of the checks, where each of them observes and passes."""
    seen = {(id_, t) for path in files for id_, tests in collected(path).items() for t in tests}
    observations = [Observation(id_, test, 1) for id_, test in sorted(seen)]
    attempts = [Attempt(test, (id_,), 1, "passed") for id_, test in sorted(seen)]
    context = JudgeContext(profile, judges=dict.fromkeys(JUDGES, _content_with_all))
    known = load_checklists().checks
    return {id_: judge_check(known[id_], observations, attempts, context) for id_ in sorted(checks)}


def certified(results: Iterable[CheckResult], gate: int, profile: str) -> bool:
    context = JudgeContext(profile, gate=gate, lower_gates=frozenset(range(1, gate)))
    return judge_gate(context, [r for r in results if r.gate == gate]).certified


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_gate_of_a_deleted_file_is_not_certified(path: Path) -> None:
    checks = frozenset(id_ for other in FILES for id_ in collected(other))
    lost = []
    for profile in PROFILES:
        whole = judged(FILES, profile, checks)
        shown = {id_: r for id_, r in whole.items() if r.verdict == Verdict.PASS}
        left = judged([other for other in FILES if other != path], profile, frozenset(shown))
        for gate in {r.gate for r in shown.values()}:
            assert certified(shown.values(), gate, profile)
        lost += [(profile, r.gate) for r in left.values() if r.verdict == Verdict.NOT_RUN]
        for gate in {gate for place, gate in lost if place == profile}:
            assert not certified(left.values(), gate, profile)
    assert lost, f"{path.name} serves no gate"
