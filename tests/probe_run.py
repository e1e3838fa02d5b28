"""One run of a check's test outside pytest: its fixtures, what it observes, and the verdicts."""

import inspect
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness.checklist import Check, load_checklists
from harness.gates import JudgeContext, judge_observation
from harness.observation import Finding, Observation, Verdict
from harness.session import sort_arguments
from suites import test_genuine, test_haiku

Test = Callable[..., None]
Seen = dict[str, list[Observation]]
"""What one run observed, by check; several observations where a check has several attempts."""


def observer_of(check: str) -> Test:
    """The suites' first test that observes this check."""
    for module in (test_genuine, test_haiku):
        for found in vars(module).values():
            marks = getattr(found, "pytestmark", ())
            if any(mark.name == "check" and check in mark.args for mark in marks):
                test: Test = found
                return test
    raise SystemExit(f"{check}: no test of suites/test_genuine.py or test_haiku.py observes it")


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
    seen: Seen = {check: [] for check in checks}

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
    """What the check's judge says; of several attempts, where the check has them, the best."""
    if not seen:
        return Finding(Verdict.NOT_RUN, "recorded no observation")
    context = JudgeContext(profile=profile)
    found = [judge_observation(check, one, context) for one in seen]
    return next((one for one in found if one.verdict is Verdict.PASS), found[-1])


def check_of(id_: str) -> Check:
    """The check of this id."""
    return load_checklists().checks[id_]
