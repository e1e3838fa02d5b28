"""A client that leaves too late for the phase it should leave in: the suite with a real engine."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.launch import LaunchSpec, RunningEngine
from harness.launch.process import ProcessLauncher
from harness.observation import Finding, Observation, Verdict
from harness.session import sort_arguments
from suites import test_cancellation as suite
from tests.default_model import DEFAULT_MODEL

CHECK = "G4-CANCEL-DISCONNECT"
SERVE = (sys.executable, "-m", "engine.cli", "serve", "--model", "{model}", "--port", "{port}")


@pytest.fixture(scope="module")
def engine() -> Iterator[RunningEngine]:
    running = ProcessLauncher().launch(LaunchSpec(SERVE, DEFAULT_MODEL, ready_timeout_s=600.0))
    yield running
    running.stop()


def test_one_that_left_in_decode_leaves_again(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second client is late."""
    wait_in, waited, seen = suite.wait_in, list[str](), dict[str, Any]()

    def wait_long(phase: str, live: Any) -> None:
        wait_in(phase, live)
        if len(waited) % 2 == 0:
            live.wait_for("token", 60.0, 1)
        waited.append(phase)

    monkeypatch.setattr(suite, "wait_in", wait_long)
    monkeypatch.setattr(suite, "HEAVY", {**suite.HEAVY, "prompt": suite.STORY * 8})
    suite.test_client_leaves("prefill", engine, lambda **named: seen.update(named))
    assert len(seen["late"]) == len(seen["left"]) == 10
    assert judged(seen).verdict == Verdict.PASS


def judged(seen: dict[str, Any]) -> Finding:
    """What the judge finds, however slow this machine is."""
    exchanges, facts = sort_arguments(seen)
    limits = {"min_trials": 10, "p95_ms": 60_000.0}
    return JUDGES[CHECK](Observation(CHECK, "t", 1, exchanges, facts), limits)
