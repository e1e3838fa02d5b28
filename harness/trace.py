"""Traceability: every requirement has a check, every check a test, and no test is an orphan."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.checklist import Checklists
from harness.observation import Finding, Json, Verdict


@dataclass(frozen=True)
class Collected:
    """A collected gate test: node id, name with parameters, and the checks it is marked with."""

    nodeid: str
    test: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The gaps between requirements, checks and tests; `problems` are errors of collection."""

    requirements_without_check: tuple[str, ...] = ()
    checks_without_test: tuple[str, ...] = ()
    tests_missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def finding(self) -> Finding:
        """The verdict of G4-TRACE."""
        if self.problems:
            return Finding(Verdict.ERROR, self.problems[0])
        gaps = [
            f"{len(ids)} {what} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
            for ids, what in (
                (self.requirements_without_check, "requirements without a check"),
                (self.checks_without_test, "checks without a test"),
                (self.tests_missing, "listed tests that were not collected"),
            )
            if ids
        ]
        if gaps:
            return Finding(Verdict.NOT_RUN, "; ".join(gaps))
        return Finding(Verdict.PASS, "every requirement has a check, every check a test")


def trace(
    checklists: Checklists, collected: Sequence[Collected], errors: Iterable[str] = ()
) -> Trace:
    """Compare the checklists with what was collected; `errors` are those of collection itself."""
    answered = {id_ for check in checklists.checks.values() for id_ in check.requirements}
    tests = _tests_by_check(collected)
    judged = [check for check in checklists.checks.values() if not check.computed]
    return Trace(
        tuple(r.id for r in checklists.requirements if r.id not in answered),
        tuple(check.id for check in judged if not check.tests or not tests.get(check.id)),
        tuple(
            f"{check.id}: {test}"
            for check in judged
            for test in sorted(check.tests - tests.get(check.id, set()))
        ),
        (*dict.fromkeys(errors), *_problems(checklists, collected)),
    )


def _tests_by_check(collected: Sequence[Collected]) -> Mapping[str, set[str]]:
    tests: dict[str, set[str]] = defaultdict(set)
    for item in collected:
        for check in item.checks:
            tests[check].add(item.test)
    return tests


def _problems(checklists: Checklists, collected: Sequence[Collected]) -> list[str]:
    problems = []
    owners: dict[tuple[str, str], str] = {}
    for item in dict.fromkeys(collected):
        if not item.checks:
            problems.append(f"{item.nodeid}: a gate test without a check")
        for check in item.checks:
            problems += _mark_problems(checklists, item, check)
            owner = owners.setdefault((check, item.test), item.nodeid)
            if owner != item.nodeid:
                problems.append(f"{item.nodeid}: {owner} already observes {check} by this name")
    return problems


def _mark_problems(checklists: Checklists, item: Collected, check: str) -> list[str]:
    known = checklists.checks.get(check)
    if known is None:
        return [f"{item.nodeid}: marked with check {check!r}, which no checklist has"]
    if known.computed:
        return [f"{item.nodeid}: marked with check {check}, which is computed and has no test"]
    if len(set(item.checks)) != len(item.checks):
        return [f"{item.nodeid}: marked with {check} twice"] if item.checks.count(check) > 1 else []
    return []


def trace_json(checklists: Checklists, collected: Sequence[Collected]) -> dict[str, Json]:
    """`trace.json`: requirement ↔ check ↔ test both ways, what was collected, and the orphans."""
    tests = _tests_by_check(collected)
    by_requirement: dict[str, list[str]] = {r.id: [] for r in checklists.requirements}
    for check in checklists.checks.values():
        for id_ in check.requirements:
            by_requirement[id_].append(check.id)
    return {
        "requirements": [
            {"id": r.id, "text": r.text, "source": r.source, "checks": by_requirement[r.id]}
            for r in checklists.requirements
        ],
        "checks": [
            {
                "id": check.id,
                "requirements": list(check.requirements),
                "tests": sorted(tests.get(check.id, ())),
            }
            for check in checklists.checks.values()
        ],
        "tests": [
            {"nodeid": item.nodeid, "test": item.test, "checks": list(item.checks)}
            for item in dict.fromkeys(collected)
        ],
    }
