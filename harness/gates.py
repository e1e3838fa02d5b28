"""Judging: pure functions from observations and attempts to verdicts, at run time and offline.

The verdict of a check is the worst over the observations that its checklist requires in the
profile at hand; one that is missing is `not_run`. Any failed attempt fails the check, whatever
came after, except where the checklist states several attempts. A gate is certified only if every
applicable check passes (or is validly waived), at least one was applicable, and nothing blocks it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from harness.checklist import ENGINE_KINDS, Check, Checklists, Gate, load_checklists, load_gates
from harness.judges import JUDGES
from harness.observation import Finding, Judge, Observation, Verdict
from harness.outcome import (
    AppliedLimit,
    Attempt,
    CheckResult,
    GateResult,
    TestResult,
    worst,
)
from harness.profiles import PROFILES, Profile, scaled
from harness.trace import Trace
from harness.waivers import Waiver, waive

__all__ = [
    "Check",
    "Checklists",
    "Gate",
    "JudgeContext",
    "Run",
    "judge_check",
    "judge_gate",
    "judge_run",
    "load_checklists",
    "load_gates",
]

TRACE, LOWER_GATES = "G4-TRACE", "G4-GATES-1-3"


@dataclass(frozen=True)
class JudgeContext:
    """What a verdict depends on besides the evidence.

    `gate` is the gate asked for, `area` the area where only one was; `ours` says whether the
    engine under test is this project's; `judged_at` (UTC) dates the waivers; `lower_gates` are
    the gates that verified bundles certify for the same digests and profile.
    """

    profile: str
    launcher: str = "process"
    engine_kind: str = "native"
    ours: bool = True
    gate: int = 4
    areas: tuple[str, ...] = ()
    judged_at: datetime | None = None
    lower_gates: frozenset[int] = frozenset()
    waivers: tuple[Waiver, ...] = ()
    blockers: tuple[str, ...] = ()
    judges: Mapping[str, Judge] = field(default_factory=lambda: JUDGES)

    @property
    def rules(self) -> Profile:
        """The profile's rules."""
        return PROFILES[self.profile]

    def in_scope(self, checklists: Checklists) -> tuple[Check, ...]:
        """The checks to judge: of the areas, else of all gates up to this one not yet certified."""
        if self.areas:
            wanted = set(self.areas)
            return tuple(c for c in checklists.checks.values() if wanted & set(c.areas))
        return tuple(c for c in checklists.up_to(self.gate) if c.gate not in self.lower_gates)


def why_not_applicable(check: Check, context: JudgeContext) -> str:
    """Why the check cannot be judged here, or the empty string: it can."""
    if check.subject != "engine" and not context.ours:
        return f"about the {check.subject}, not about the engine under test"
    if context.launcher not in check.launchers:
        return f"launcher {context.launcher}"
    if _api(context.engine_kind) not in check.engines:
        return f"engine kind {context.engine_kind}"
    if not set(check.where) & set(context.rules.places):
        return _OUTSIDE[check.where[0]]
    return ""


def _api(kind: str) -> str:
    """The kind that the checklists know: a third party's API shows what OpenAI's shows."""
    return kind if kind in ENGINE_KINDS else "openai"


_OUTSIDE = {"cuda": "needs a CUDA GPU", "m0": "needs the reference weights"}


def places_in(check: Check, context: JudgeContext) -> tuple[str, ...]:
    """The places of this profile where the check is judged, else where it is only reported."""
    judged = tuple(place for place in check.where if place in context.rules.places)
    return judged or tuple(place for place in check.reported if place in context.rules.places)


def runnable(check: Check, context: JudgeContext) -> bool:
    """Whether the check's tests are worth running: it is applicable, or reported."""
    outside = why_not_applicable(check, context)
    return not outside or (outside in _OUTSIDE.values() and bool(places_in(check, context)))


def judge_check(
    check: Check,
    observations: Sequence[Observation],
    attempts: Sequence[Attempt],
    context: JudgeContext,
) -> CheckResult:
    """The verdict on one check that is not computed; evidence of other checks is ignored."""
    limits = scaled(check.limits, context.rules)
    applied = {name: AppliedLimit(check.limits[name], limits[name]) for name in limits}
    result = CheckResult(check.id, check.gate, Verdict.NOT_APPLICABLE, "", limits=applied)
    outside = why_not_applicable(check, context)
    if outside and not runnable(check, context):
        return replace(result, message=outside)
    evidence = _Evidence.of(check, observations, attempts)
    tests = _required_results(check, evidence, context) + _unlisted_results(check, evidence)
    if outside:
        return replace(result, message=f"{outside}; numbers reported, not judged", tests=tests)
    verdict = worst(test.verdict for test in tests)
    message = _because(verdict, tests)
    judged = replace(result, verdict=verdict, message=message, tests=tests)
    return waive(judged, check, context.waivers, context.judged_at)


def _because(verdict: Verdict, tests: Sequence[TestResult]) -> str:
    if not tests:
        return "no test observes it"
    behind = [test for test in tests if test.verdict == verdict]
    if verdict == Verdict.PASS:
        return behind[0].message if len(tests) == 1 else f"{len(tests)} observations"
    more = f" (and {len(behind) - 1} more)" if len(behind) > 1 else ""
    return f"{behind[0].test}: {behind[0].message}{more}"


@dataclass(frozen=True)
class _Evidence:
    observations: Mapping[str, list[Observation]]
    attempts: Mapping[str, list[Attempt]]

    @classmethod
    def of(
        cls, check: Check, observations: Sequence[Observation], attempts: Sequence[Attempt]
    ) -> "_Evidence":
        seen: dict[str, list[Observation]] = defaultdict(list)
        for observation in observations:
            if observation.check == check.id:
                seen[observation.test].append(observation)
        tried: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            if check.id in attempt.checks:
                tried[attempt.test].append(attempt)
        return cls(seen, tried)


def _required_results(
    check: Check, evidence: _Evidence, context: JudgeContext
) -> tuple[TestResult, ...]:
    """One result a required test; a place without any required test is `not_run` by itself."""
    places = places_in(check, context)
    empty = tuple(
        TestResult(f"({place})", Verdict.NOT_RUN, "no test observes it there")
        for place in places
        if not check.observations.get(place)
    )
    required = check.required(places)
    return empty + tuple(_judge_test(check, test, evidence, context) for test in required)


def _unlisted_results(check: Check, evidence: _Evidence) -> tuple[TestResult, ...]:
    tests = (set(evidence.observations) | set(evidence.attempts)) - check.tests
    message = "the checklist does not list this test; see: haikugate gates observations"
    return tuple(TestResult(test, Verdict.ERROR, message) for test in sorted(tests))


ATTEMPT_VERDICTS = {
    "passed": Verdict.PASS,
    "failed": Verdict.ERROR,
    "unfinished": Verdict.ERROR,
    "skipped": Verdict.NOT_RUN,
    "xfailed": Verdict.NOT_RUN,
    "xpassed": Verdict.NOT_RUN,
}


def _judge_test(check: Check, test: str, evidence: _Evidence, context: JudgeContext) -> TestResult:
    attempts = evidence.attempts.get(test, [])
    observations = sorted(evidence.observations.get(test, ()), key=lambda seen: seen.attempt)
    result = TestResult(test, Verdict.NOT_RUN, "", attempts=len(attempts))
    if not attempts:
        return replace(result, message="not attempted: not collected, or deselected")
    for attempt in attempts:
        if attempt.outcome != "passed":
            verdict = ATTEMPT_VERDICTS.get(attempt.outcome, Verdict.ERROR)
            said = f"{attempt.outcome}: {attempt.message}" if attempt.message else attempt.outcome
            result = _worse(result, verdict, said)
    if not observations:
        return result if result.message else replace(result, message="recorded no observation")
    finding = _combined(check, observations, context)
    if result.message:
        return _worse(replace(result, numbers=finding.numbers), finding.verdict, finding.message)
    return replace(
        result, verdict=finding.verdict, message=finding.message, numbers=finding.numbers
    )


def _worse(result: TestResult, verdict: Verdict, message: str) -> TestResult:
    if not result.message or worst((result.verdict, verdict)) != result.verdict:
        return replace(result, verdict=verdict, message=message)
    return result


def _combined(check: Check, observations: Sequence[Observation], context: JudgeContext) -> Finding:
    """The worst finding; where the checklist states several attempts, the best of so many."""
    if len(observations) > check.attempts and check.attempts > 1:
        return Finding(
            Verdict.FAIL, f"{len(observations)} attempts, the checklist states {check.attempts}"
        )
    findings = [judge_observation(check, seen, context) for seen in observations]
    worst_verdict = worst(finding.verdict for finding in findings)
    passed = [finding for finding in findings if finding.verdict == Verdict.PASS]
    if check.attempts > 1 and passed:
        return passed[0]
    return next(finding for finding in findings if finding.verdict == worst_verdict)


_FINDABLE = (Verdict.PASS, Verdict.NOT_RUN, Verdict.ERROR, Verdict.FAIL)


def judge_observation(check: Check, observation: Observation, context: JudgeContext) -> Finding:
    """What the check's judge finds; a judge that is missing or breaks is an `error`."""
    judge = context.judges.get(check.judge_id)
    if judge is None:
        return Finding(Verdict.ERROR, f"no judge named {check.judge_id}")
    try:
        finding = judge(observation, scaled(check.limits, context.rules))
    except Exception as error:  # a judge meets hostile evidence: nothing it raises is a verdict
        return Finding(
            Verdict.ERROR, f"the judge could not read it: {type(error).__name__}: {error}"
        )
    if finding.verdict not in _FINDABLE:
        return Finding(Verdict.ERROR, f"the judge said {finding.verdict}, which is not its to say")
    return finding


@dataclass(frozen=True)
class Run:
    """The evidence of a run: what its bundle holds, and nothing else."""

    observations: Sequence[Observation]
    attempts: Sequence[Attempt]
    trace: Trace


def judge_run(
    checklists: Checklists, run: Run, context: JudgeContext
) -> tuple[GateResult, tuple[CheckResult, ...]]:
    """Judge every check in scope, computed ones last, then the gate; in the checklists' order."""
    results: dict[str, CheckResult] = {}
    checks = context.in_scope(checklists)
    for check in checks:
        if not check.computed:
            results[check.id] = judge_check(check, run.observations, run.attempts, context)
    for check in checks:
        if check.computed:
            results[check.id] = _compute(check, run.trace, tuple(results.values()), context)
    ordered = tuple(results[check.id] for check in checks)
    edited = tuple(f"{name} differs from its recorded digest" for name in checklists.edited)
    context = replace(context, blockers=context.blockers + run.trace.problems + edited)
    return judge_gate(context, ordered), ordered


def _compute(
    check: Check, trace: Trace, results: Sequence[CheckResult], context: JudgeContext
) -> CheckResult:
    outside = why_not_applicable(check, context)
    if outside:
        return CheckResult(check.id, check.gate, Verdict.NOT_APPLICABLE, outside)
    finding = trace.finding() if check.id == TRACE else _lower_gates(results, context)
    return CheckResult(check.id, check.gate, finding.verdict, finding.message)


def _lower_gates(results: Sequence[CheckResult], context: JudgeContext) -> Finding:
    lower = (1, 2, 3)
    missing = [gate for gate in lower if not _lower_gate_holds(gate, results, context)]
    if missing:
        return Finding(Verdict.NOT_RUN, f"not certified: gate {_listed(missing)}")
    said = "gates 1 to 3 are certified for the same digests and profile"
    if empty := [gate for gate in lower if _asks_nothing(gate, results, context)]:
        said += f"; of gate {_listed(empty)} nothing is applicable"
    return Finding(Verdict.PASS, said)


def _listed(gates: Sequence[int]) -> str:
    return ", ".join(str(gate) for gate in gates)


def _lower_gate_holds(gate: int, results: Sequence[CheckResult], context: JudgeContext) -> bool:
    """A gate below of which nothing is applicable asks nothing; the one asked for may not be so."""
    return (
        gate in context.lower_gates
        or _all_hold(_verdicts_of(gate, results))
        or _asks_nothing(gate, results, context)
    )


def _asks_nothing(gate: int, results: Sequence[CheckResult], context: JudgeContext) -> bool:
    verdicts = _verdicts_of(gate, results)
    return gate not in context.lower_gates and bool(verdicts) and not _judged(verdicts)


def _verdicts_of(gate: int, results: Sequence[CheckResult]) -> list[Verdict]:
    return [result.verdict for result in results if result.gate == gate]


def _judged(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict != Verdict.NOT_APPLICABLE]


def _all_hold(verdicts: Sequence[Verdict]) -> bool:
    judged = _judged(verdicts)
    return bool(judged) and all(v in (Verdict.PASS, Verdict.WAIVED) for v in judged)


def judge_gate(context: JudgeContext, results: Sequence[CheckResult]) -> GateResult:
    """CERTIFIED only if every applicable check holds, one at least was judged, and none blocks."""
    counted = Counter(result.verdict for result in results)
    counts = {verdict.value: counted[verdict] for verdict in Verdict}
    below = range(1, context.gate)
    lower = [gate for gate in below if not _lower_gate_holds(gate, results, context)]
    blockers = context.blockers
    if not context.areas and lower:
        blockers += (f"gate {_listed(lower)} is not certified",)
    if not context.areas and not _judged(_verdicts_of(context.gate, results)):
        blockers += (f"of gate {context.gate} nothing is applicable",)
    holds = _all_hold([result.verdict for result in results]) and not blockers
    return GateResult(
        scope=f"area {' '.join(context.areas)}" if context.areas else f"gate {context.gate}",
        gate=context.gate,
        profile=context.profile,
        holds=holds,
        certified=holds and not context.areas,
        title=certificate_title(context, counts, custom=_custom_calibration(results)),
        counts=counts,
        blockers=blockers,
    )


def _custom_calibration(results: Sequence[CheckResult]) -> bool:
    """Whether any judge went by another calibration than the shipped one."""
    numbers = (test.numbers for result in results for test in result.tests)
    return any(table.get("custom_calibration") for table in numbers)


def certificate_title(
    context: JudgeContext, counts: Mapping[str, int], *, custom: bool = False
) -> str:
    """What a certificate of this scope claims, and what it does not."""
    scope = f"Area {' '.join(context.areas)}" if context.areas else f"Gate {context.gate}"
    outside = counts[Verdict.NOT_APPLICABLE]
    applicable = sum(counts.values()) - outside
    text = (
        f"{scope}, profile {context.profile}: {counts[Verdict.PASS]} of {applicable} applicable"
        " checks passed."
    )
    if context.profile != "m0":
        if outside:
            text += f" {outside} checks need {_MISSING[context.profile]} and were NOT run."
        text += " This is not an M0 certificate."
    notes = [note for note, applies in _title_notes(context, counts) if applies]
    calibrated = ["Custom calibration."] if custom else []
    return " ".join([text, *notes, *calibrated])


_MISSING = {
    "cpu": "a CUDA GPU, reference weights or another launcher or engine",
    "gpu": "reference weights or another launcher or engine",
}


def _title_notes(context: JudgeContext, counts: Mapping[str, int]) -> tuple[tuple[str, bool], ...]:
    return (
        ("WITH WAIVERS.", counts[Verdict.WAIVED] > 0),
        ("Behavioural profile.", context.engine_kind != "native"),
        ("Nothing about the process is proven.", context.launcher == "attach"),
        ("An area is no certificate.", bool(context.areas)),
    )
