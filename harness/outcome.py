"""Attempts from the ledger, and the results of judging: of tests, checks and gates."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from harness.observation import Json, Verdict

SEVERITY: Mapping[Verdict, int] = {verdict: rank for rank, verdict in enumerate(Verdict)}
"""Verdicts from best (0) to worst."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of them; of none, `not_run`: nothing judged is not a pass."""
    return max(verdicts, key=SEVERITY.__getitem__, default=Verdict.NOT_RUN)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a test, as the ledger tells it.

    `outcome` is passed, failed, skipped, xfailed, xpassed, or unfinished for one that started and
    never ended (crash, exit, kill).
    """

    test: str
    checks: tuple[str, ...]
    number: int
    outcome: str
    message: str = ""


def attempts_from(records: Iterable[Mapping[str, Json]]) -> tuple[Attempt, ...]:
    """The attempts that the ledger's `started` and `finished` records describe, in order.

    One that ends a second time is one more: no record undoes another.
    """
    attempts: dict[tuple[str, str, int, int], Attempt] = {}
    ended: Counter[tuple[str, str, int]] = Counter()
    for record in records:
        if record.get("event") not in ("started", "finished"):
            continue
        attempt = Attempt(
            test=str(record["test"]),
            checks=tuple(record["checks"]),
            number=int(record["attempt"]),
            outcome=str(record.get("outcome", "unfinished")),
            message=str(record.get("message", "")),
        )
        test = (str(record.get("nodeid")), str(record.get("worker")), attempt.number)
        attempts[(*test, ended[test])] = attempt
        ended[test] += record["event"] == "finished"
    return tuple(attempts.values())


@dataclass(frozen=True)
class TestResult:
    """The verdict on one required test of one check; `numbers` are those its judge computed."""

    __test__ = False

    test: str
    verdict: Verdict
    message: str
    attempts: int = 0
    numbers: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class AppliedLimit:
    """A limit as the checklist writes it, and as it was applied in this profile."""

    written: float
    applied: float


@dataclass(frozen=True)
class CheckResult:
    """A check's verdict, the sentence that says why, and the tests behind it."""

    check: str
    gate: int
    verdict: Verdict
    message: str
    tests: tuple[TestResult, ...] = ()
    limits: Mapping[str, AppliedLimit] = field(default_factory=dict)

    @property
    def numbers(self) -> Mapping[str, Mapping[str, Json]]:
        """The judges' numbers by test."""
        return {test.test: test.numbers for test in self.tests if test.numbers}

    def to_json(self) -> dict[str, Json]:
        """The result as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class GateResult:
    """The verdict on a gate or an area.

    `blockers` are reasons that no check carries (an edited checklist, a collection error, an
    interruption). An area whose checks all hold is no certificate.
    """

    scope: str
    gate: int
    profile: str
    holds: bool
    certified: bool
    title: str
    counts: Mapping[str, int]
    blockers: tuple[str, ...] = ()

    @property
    def applicable(self) -> int:
        """How many checks were applicable."""
        return sum(self.counts.values()) - self.counts[Verdict.NOT_APPLICABLE]

    @property
    def verdict_line(self) -> str:
        """The one line that says it: CERTIFIED or NOT CERTIFIED, and the counts."""
        counts = self.counts
        parts = [f"{counts[Verdict.PASS]} of {self.applicable} applicable checks passed"]
        parts += [
            f"{counts[verdict]} {words}"
            for verdict, words in _COUNTED
            if counts[verdict] or verdict == Verdict.NOT_RUN
        ]
        head = "PASSED, not a certificate" if self.holds else "NOT CERTIFIED"
        head = "CERTIFIED" if self.certified else head
        return f"{head}: {', '.join(parts)}"

    def to_json(self) -> dict[str, Json]:
        """The result as a JSON object, the derived numbers with it."""
        return asdict(self) | {"applicable": self.applicable, "verdict_line": self.verdict_line}


_COUNTED = (
    (Verdict.WAIVED, "waived"),
    (Verdict.NOT_RUN, "not run"),
    (Verdict.ERROR, "error"),
    (Verdict.FAIL, "fail"),
)
