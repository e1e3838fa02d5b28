"""checks.json: verdicts with what they rest on; written and recomputed by the same code."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from harness.assurance import assurance_of
from harness.checklist import Checklists
from harness.observation import Json
from harness.outcome import CheckResult, GateResult
from harness.transcript import Recorded

EvidencePaths = Mapping[tuple[str, str], Sequence[str]]
"""Paths of observation records by (check, test)."""


def evidence_paths(recorded: Iterable[Recorded]) -> EvidencePaths:
    """Where the bundle holds what each test saw for each check."""
    paths: dict[tuple[str, str], list[str]] = defaultdict(list)
    for seen in recorded:
        paths[seen.observation.check, seen.observation.test].append(seen.path)
    return {key: sorted(found) for key, found in paths.items()}


def verdicts_json(
    checklists: Checklists,
    gate: GateResult,
    results: Sequence[CheckResult],
    evidence: EvidencePaths,
) -> dict[str, Json]:
    """The content of checks.json: the gate's result, and each check with text, tests, evidence."""
    checks = [_check_json(checklists, result, evidence) for result in results]
    return {**_plain(gate.to_json()), "checks": checks}


def _check_json(
    checklists: Checklists, result: CheckResult, evidence: EvidencePaths
) -> dict[str, Json]:
    check = checklists.checks[result.check]
    tests = [
        {**_plain(asdict(test)), "evidence": list(evidence.get((check.id, test.test), ()))}
        for test in result.tests
    ]
    return {
        "id": check.id,
        "gate": check.gate,
        "text": check.text,
        "requirements": list(check.requirements),
        "subject": check.subject,
        "areas": list(check.areas),
        "assurance": assurance_of(check.id).value,
        "verdict": result.verdict.value,
        "message": result.message,
        "limits": _plain({name: asdict(limit) for name, limit in result.limits.items()}),
        "tests": tests,
    }


def _plain(value: Json) -> Json:
    """The value as JSON holds it: lists for tuples, text for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
