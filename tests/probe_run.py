"""One run of a check's test outside pytest: its fixtures, what it observes, and the verdicts."""

import inspect
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from harness.checklist import Check, load_checklists
from harness.gates import JudgeContext, judge_observation
from harness.observation import Finding, Observation, Verdict
from harness.outcome import worst
from harness.session import sort_arguments
from suites import test_genuine, test_haiku

Test = Callable[..., None]
Seen = dict[str, list[Observation]]
"""What one run observed, by check; several observations where a check has several attempts."""


def observers_of(checks: Sequence[str]) -> list[Test]:
    """The suites' tests that these checks require of an engine anywhere, in the suites' order."""
    known = load_checklists().checks
    required = {name for id_ in checks for name in known[id_].required(("any",))}
    found = {**vars(test_genuine), **vars(test_haiku)}
    if missing := required - found.keys():
        raise SystemExit(f"{min(missing)}: neither in suites/test_genuine.py nor in test_haiku.py")
    return [found[name] for name in found if name in required]


def _marked(test: Test) -> set[str]:
    marks = getattr(test, "pytestmark", ())
    return {id_ for mark in marks if mark.name == "check" for id_ in mark.args}


def command(saboteur: str) -> tuple[str, ...]:
    """The command of a saboteur, or of the honest engine where none is named."""
    ports = ("--model", "{model}", "--port", "{port}")
    if saboteur:
        return (sys.executable, "-m", "harness.saboteurs", saboteur, *ports)
    return (sys.executable, "-m", "engine.cli", "serve", *ports)


BUSY = """
import os, sys, threading
threading.Thread(target=lambda: sys.stdin.read() or os._exit(0), daemon=True).start()
while True: pass
"""


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but use a core each; they end when this one does."""
    command = [sys.executable, "-c", BUSY]
    loops = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def observed(test: Test, checks: Sequence[str], fixtures: Mapping[str, Callable[[], Any]]) -> Seen:
    """Run the test once with a nonce of its own; a fixture is made only if the test wants it."""
    seen: Seen = {check: [] for check in checks if check in _marked(test)}

    def observe(**named: Any) -> None:
        exchanges, facts = sort_arguments(named)
        for check, found in seen.items():
            found.append(Observation(check, test.__name__, len(found) + 1, exchanges, facts))

    offered: dict[str, Callable[[], Any]] = {
        "nonce": lambda: secrets.token_hex(16),
        "observe": lambda: observe,
        "vocabulary": lambda: None,
        "calibration": lambda: None,
        **fixtures,
    }
    test(**{name: offered[name]() for name in inspect.signature(test).parameters})
    return seen


def judged(check: Check, seen: Sequence[Observation], profile: str) -> Finding:
    """What the check's judge says of one test: of several attempts, where it has them, the best."""
    if not seen:
        return Finding(Verdict.NOT_RUN, "recorded no observation")
    context = JudgeContext(profile=profile)
    found = [judge_observation(check, one, context) for one in seen]
    return next((one for one in found if one.verdict is Verdict.PASS), found[-1])


def findings(
    checks: Sequence[str], fixtures: Mapping[str, Callable[[], Any]], profile: str
) -> dict[str, Finding]:
    """What the judges say of one run of the checks' tests.

    The tests share their fixtures, as in a gate, until all checks have failed: a check holds only
    if all of its tests do, so no later one would change that.
    """
    shared = {name: cache(make) for name, make in fixtures.items()}
    found: dict[str, Finding] = {}
    for test in observers_of(checks):
        for id_, seen in observed(test, checks, shared).items():
            said = judged(check_of(id_), seen, profile)
            found[id_] = _worse(found.get(id_), said)
        if all(id_ in found and found[id_].verdict is Verdict.FAIL for id_ in checks):
            break
    return found


def _worse(one: Finding | None, other: Finding) -> Finding:
    return other if one is None or worst((one.verdict, other.verdict)) != one.verdict else one


def check_of(id_: str) -> Check:
    """The check of this id."""
    return load_checklists().checks[id_]
