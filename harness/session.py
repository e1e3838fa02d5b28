"""A gate run inside pytest: what is asked, what was collected, attempted and observed.

Everything that judging needs goes into the bundle's parts as it happens; nothing is judged from
memory, so a report that someone drops or changes alters no verdict.
"""

import hashlib
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.asked import Asked
from harness.checklist import Check, Checklists
from harness.errors import LaunchError
from harness.gates import (
    JudgeContext,
    judge_observation,
    places_in,
    runnable,
    why_not_applicable,
)
from harness.launch import RunningEngine
from harness.launch.liveness import is_there
from harness.observation import Exchange, Finding, Json, Observation
from harness.pseudonyms import without_home
from harness.trace import Collected
from harness.under_test import EngineUnderTest


@dataclass(frozen=True)
class Nonce:
    """The run's nonce; its digest is in the ledger before the first request."""

    value: str

    @classmethod
    def of(cls, given: str | None) -> "Nonce":
        """The reviewer's nonce, or a random one."""
        return cls(given or secrets.token_hex(16))

    @property
    def commitment(self) -> str:
        """SHA-256 of the nonce."""
        return hashlib.sha256(self.value.encode()).hexdigest()


@dataclass
class GateSession:
    """The state of one process of a run: the only one, xdist's controller, or a worker.

    `bundle` is None where nothing is asked for: then an observation is judged on the spot.
    """

    checklists: Checklists
    context: JudgeContext
    under_test: EngineUnderTest
    nonce: Nonce
    asked: Asked | None = None
    worker: str = "main"
    bundle: Path | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    errors: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    companions: tuple[str, ...] = ()
    interrupted: bool = False
    terminated: bool = False
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    findings: dict[str, list[tuple[str, Finding]]] = field(default_factory=dict)
    _part: Any = None
    _main: RunningEngine | None = None
    _gone: str = ""
    _tries: Counter[str] = field(default_factory=Counter)
    _observed: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def part(self) -> Any:
        """This process's part of the bundle, opened when it is first written to."""
        if self._part is None and self.bundle is not None:
            from harness.evidence import PartWriter

            self._part = PartWriter(self.bundle, self.worker)
        return self._part

    def record(self, event: str, **fields: Json) -> None:
        """Chain a record in the ledger; nothing where no gate is asked for."""
        if self.bundle is not None:
            self.part.attempt({"event": event, "worker": self.worker, **fields})

    def close(self) -> None:
        """End this process's chain."""
        if self._part is not None:
            self._part.close()

    @contextmanager
    def main_engine(self) -> Iterator[RunningEngine]:
        """The engine that most tests share, launched now; its narration goes into the bundle."""
        self._main = self.under_test.launch()
        try:
            with self._telemetry(self._main):
                yield self._main
        finally:
            self._main.stop()
            self.engine_log("main", self._main.log_lines())

    @contextmanager
    def _telemetry(self, engine: RunningEngine) -> Iterator[None]:
        """Sample the engine's processes and its GPU; nothing of an engine without a known pid."""
        pid = (engine.process_facts() or {}).get("pid")
        if self.bundle is None or not isinstance(pid, int):
            yield
            return
        from harness.environment import gpu_facts
        from harness.telemetry import TelemetrySampler

        sampled = self.context.profile != "cpu" and gpu_facts()["gpus"]
        gpus = (int(self.under_test.options.gpu or 0),) if sampled else ()
        sampler = TelemetrySampler([pid], gpus)
        sampler.start()
        try:
            yield
        finally:
            sampler.stop()
            self.part.telemetry(sampler.samples)

    def require_main_engine(self) -> None:
        """Raises LaunchError if the shared engine was launched and is gone."""
        if self._main is None or (not self._gone and is_there(self._main)):
            return
        said = " | ".join(self._main.log_lines()[-5:])[-1000:] or "nothing"
        self._gone = self._gone or self._how_it_went(self._main)
        raise LaunchError(f"the engine under test {self._gone}; it last said: {said}")

    @staticmethod
    def _how_it_went(engine: RunningEngine) -> str:
        if engine.stopped:
            return "was stopped by a test"
        return "no longer answers" if engine.alive() else "died"

    def engine_log(self, name: str, lines: Sequence[str]) -> None:
        """Keep what an engine printed."""
        if self.bundle is not None:
            self.part.engine_log(f"{self.worker}.{name}", without_home(list(lines)))

    def seed(self, **fields: Json) -> None:
        """Keep a challenge that was drawn."""
        if self.bundle is not None:
            self.part.seed(fields)

    def required_tests(self, check: str) -> tuple[str, ...]:
        """The tests that this check requires here."""
        known = self.checklists.checks[check]
        return known.required(places_in(known, self.context))

    def collected(self, items: Sequence[Collected]) -> None:
        """Keep what this process collected, and the errors it met."""
        tests = [[item.nodeid, item.test, list(item.checks)] for item in items]
        self.record("collected", tests=tests, errors=list(self.errors))

    def started(self, item: Collected) -> None:
        """An attempt at a test begins."""
        self._tries[item.nodeid] += 1
        self.outcomes.pop(item.nodeid, None)
        self.findings.pop(item.nodeid, None)
        self.record("started", **self._attempt(item))

    def finished(self, item: Collected) -> None:
        """It ended; the worst outcome of its phases counts."""
        outcome, message = self.outcomes.get(item.nodeid, ("passed", ""))
        self.record("finished", **self._attempt(item), outcome=outcome, message=message)

    def phase(self, item: Collected, outcome: str, message: str) -> None:
        """One of setup, call, teardown ended otherwise than by passing."""
        if self.outcomes.get(item.nodeid, ("passed", ""))[0] != "failed":
            self.outcomes[item.nodeid] = (outcome, without_home(message)[:2000])

    def _attempt(self, item: Collected) -> dict[str, Json]:
        return {
            "nodeid": item.nodeid,
            "test": item.test,
            "checks": list(item.checks),
            "attempt": self._tries[item.nodeid],
        }

    def observe(self, item: Collected, named: Mapping[str, Any]) -> list[tuple[str, Finding]]:
        """Write one observation for each check of the test; returns what their judges find."""
        exchanges, facts = sort_arguments(named)
        facts = without_home(facts)
        found = []
        for check in self.checks_of(item):
            self._observed[check.id, item.test] += 1
            attempt = self._observed[check.id, item.test]
            seen = Observation(check.id, item.test, attempt, exchanges, facts)
            if self.bundle is not None:
                self.part.observation(seen, item.nodeid)
            found.append((check.id, judge_observation(check, seen, self.context)))
        self.findings.setdefault(item.nodeid, []).extend(found)
        return found

    def checks_of(self, item: Collected) -> list[Check]:
        """The known checks of a test that are worth observing here, by the checklists."""
        known = (self.checklists.checks.get(id_) for id_ in dict.fromkeys(item.checks))
        return [check for check in known if check is not None and runnable(check, self.context)]

    def only_reported(self, id_: str) -> bool:
        """Whether the check's numbers are reported here, and not judged."""
        return bool(why_not_applicable(self.checklists.checks[id_], self.context))

    def wanted(self, item: Collected) -> bool:
        """Whether any check of the test is in scope, and requires it here or does not list it."""
        scope = {check.id for check in self.context.in_scope(self.checklists)}
        for check in self.checks_of(item):
            required = check.required(places_in(check, self.context))
            if check.id in scope and (item.test in required or item.test not in check.tests):
                return True
        return not any(id_ in self.checklists.checks for id_ in item.checks)


def sort_arguments(
    named: Mapping[str, Any],
) -> tuple[dict[str, tuple[Exchange, ...]], dict[str, Json]]:
    """Exchanges, alone or in sequences, apart from facts.

    Raises TypeError for a sequence that mixes exchanges with anything else.
    """
    exchanges: dict[str, tuple[Exchange, ...]] = {}
    facts: dict[str, Json] = {}
    for name, value in named.items():
        many = value if isinstance(value, list | tuple) else [value]
        kinds = {isinstance(member, Exchange) for member in many}
        if kinds == {True}:
            exchanges[name] = tuple(many)
        elif True in kinds:
            raise TypeError(f"observe({name}=…): a sequence mixes exchanges with other values")
        else:
            facts[name] = value
    return exchanges, facts


def assertions_off(optimize: int = sys.flags.optimize) -> bool:
    """Whether Python was told to drop assert statements (-O)."""
    return optimize > 0
