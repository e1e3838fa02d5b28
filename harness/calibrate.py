"""Calibration runs: honest engines against the reference, and engines that cheat against both.

A run is the suites' own challenge for one nonce, over HTTP, judged by the check's own judge. The
two halves of the honest runs calibrate each other: thresholds judge no run that helped to set them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from harness.calibration import SCHEMA, Pairing
from harness.clients import EngineClient
from harness.clients.native import NativeClient
from harness.errors import CalibrationError, ProtocolError
from harness.judges import JUDGES
from harness.judges.genuine_rescore import evidence
from harness.judges.rule import Broken, Unseen
from harness.judges.stream import read_or_nothing
from harness.launch import LaunchSpec, RunningEngine
from harness.launch.process import ProcessLauncher, file_sha256
from harness.observation import Exchange, Json, Observation, Verdict
from harness.reference import COMMAND, READY_TIMEOUT_S
from harness.rescore import SCORED
from harness.rescoring import (
    CHECK,
    Asker,
    Planned,
    Replies,
    Rescoring,
    ask_again,
    observation,
    replies,
    score,
)
from harness.significance import rate_upper_bound
from harness.strict_json import dumps_file
from harness.traffic import reproducible

LIMITS = {"min_tokens": 300.0}
NEVER = sys.maxsize


@dataclass(frozen=True)
class Plan:
    """What runs: the model, the arguments of engine and reference, nonces and workers."""

    model: Path
    pairing: str
    engine_args: tuple[str, ...] = ()
    reference_args: tuple[str, ...] = ()
    nonces: Sequence[str] = ()
    workers: int = 1
    cheat_runs: int = 0


@dataclass(frozen=True)
class HonestRun:
    """One honest engine's run: what the suite would have observed."""

    asked: Rescoring
    seen: Observation


@dataclass
class Rate:
    """How often something was alarmed about, of how many runs; `at_tokens` when, run by run."""

    runs: int = 0
    alarms: int = 0
    at_tokens: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def to_json(self, *, honest: bool) -> dict[str, Json]:
        """Counts with the one-sided 95 % upper bound of the rate of errors (Clopper-Pearson)."""
        wrong = self.alarms if honest else self.runs - self.alarms
        told = {"tokens_median": median(self.at_tokens)} if self.at_tokens else {}
        return {
            "runs": self.runs,
            "alarms": self.alarms,
            "error_rate_upper_95": rate_upper_bound(wrong, self.runs) if self.runs else 1.0,
            "message": self.messages[0] if self.messages else "",
            **told,
        }


@contextmanager
def engine(command: Sequence[str], model: Path, args: Sequence[str]) -> Iterator[RunningEngine]:
    """One engine for the block."""
    spec = LaunchSpec(tuple(command), model, args=tuple(args), ready_timeout_s=READY_TIMEOUT_S)
    running = ProcessLauncher(NativeClient, None).launch(spec)
    try:
        yield running
    finally:
        running.stop()


def honest_runs(plan: Plan, report: Callable[[str], None]) -> list[HonestRun]:
    """A run for each nonce, shared among the workers, each with engines of its own."""

    def work(number: int) -> list[HonestRun]:
        with ExitStack() as stack:
            tested = stack.enter_context(engine(COMMAND, plan.model, plan.engine_args))
            trusted = stack.enter_context(engine(COMMAND, plan.model, plan.reference_args))
            found = []
            for nonce in plan.nonces[number :: plan.workers]:
                found.append(honest_run(plan, nonce, tested.client, trusted))
                report("honest")
            return found

    with ThreadPoolExecutor(plan.workers) as pool:
        found = list(pool.map(work, range(plan.workers)))
    return [found[i % plan.workers][i // plan.workers] for i in range(len(plan.nonces))]


def honest_run(plan: Plan, nonce: str, tested: EngineClient, trusted: RunningEngine) -> HonestRun:
    """The challenge of one nonce, answered honestly."""
    asked = Rescoring.drawn(nonce)
    asker = Asker(tested)
    jobs = [one for group in asked.groups for one in asker.ask_at_once(group)]
    seen = observation(
        asked,
        jobs,
        replies(trusted.client, trusted.client, asked, jobs, enough=NEVER),
        reference_health=trusted.client.health(),
        model_sha256=file_sha256(plan.model),
        engine_device=plan.pairing.partition("/")[0],
    )
    return HonestRun(asked, seen)


def pairing_of(name: str, runs: Sequence[HonestRun]) -> Pairing:
    """What honest runs show, counted; CalibrationError if one of them shows nothing."""
    try:
        seen = [evidence(run.seen) for run in runs]
    except (Broken, ProtocolError, Unseen) as error:
        raise CalibrationError(f"calibrate: an honest run cannot be read: {error}") from None
    replays = [replay for one in seen for replay in one.replays]
    scores = [score for one in seen for score in one.scores]
    return Pairing(
        name=name,
        runs=len(runs),
        requests=len(replays),
        parted=sum(replay.parted for replay in replays),
        compared_tokens=sum(replay.tokens + replay.parted for replay in replays),
        greedy_tokens=len(scores),
        inexact=sum(score.token_id != score.argmax_id for score in scores),
        worst_margin=max(one.worst_margin for one in seen),
        logprob_tokens=sum(len(one.logprob_gaps) for one in seen),
        worst_logprob_gap=max(one.worst_logprob_gap for one in seen),
    )


def false_alarms(name: str, runs: Sequence[HonestRun]) -> Rate:
    """Each half judged by the calibration of the other."""
    rate = Rate()
    for ours, others in ((runs[::2], runs[1::2]), (runs[1::2], runs[::2])):
        text = file_of({name: pairing_of(name, others)}).decode()
        for run in ours:
            _count(rate, _calibrated(run.seen, text))
    return rate


def _calibrated(seen: Observation, text: str) -> Observation:
    return replace(seen, facts={**seen.facts, "calibration": text})


def _count(rate: Rate, seen: Observation) -> bool:
    """Judge; True where it was an alarm. An error is one too: nothing was shown."""
    found = JUDGES[CHECK](seen, LIMITS)
    rate.runs += 1
    if found.verdict is Verdict.PASS:
        return False
    rate.alarms += 1
    rate.messages.append(found.message)
    return True


def catches(
    plan: Plan, names: Sequence[str], honest: Sequence[HonestRun], report: Callable[[str], None]
) -> Iterator[tuple[str, Rate]]:
    """How often each of these saboteurs fails the check, judged by what the honest runs show."""
    text = file_of({plan.pairing: pairing_of(plan.pairing, honest)}).decode()

    def work(name: str) -> tuple[str, Rate]:
        rate = Rate()
        command = (sys.executable, "-m", "harness.saboteurs", name)
        fields = ("--model", "{model}", "--port", "{port}")
        with ExitStack() as stack:
            cheat = stack.enter_context(engine((*command, *fields), plan.model, plan.engine_args))
            trusted = stack.enter_context(engine(COMMAND, plan.model, plan.reference_args))
            for run in honest[: plan.cheat_runs]:
                _caught(rate, run, cheat.client, trusted.client, text)
                report(name)
        return name, rate

    with ThreadPoolExecutor(plan.workers) as pool:
        yield from pool.map(work, names)


def _caught(
    rate: Rate, run: HonestRun, cheat: EngineClient, trusted: EngineClient, text: str
) -> None:
    """One run of a cheating engine, judged after each request, until it fails or ends.

    The reference's replays are those of the honest run: the same requests, the same reference;
    but for requests that the engine's own answers or draws make up.
    """
    asker, told, jobs = Asker(cheat), Replies(), list[Exchange]()
    rate.runs += 1
    for group in run.asked.groups:
        answers = asker.ask_at_once(group)
        for planned, job in zip(group, answers, strict=True):
            told = _with_replies(told, run.seen, trusted, planned, job)
        jobs += answers
        exchanges = {"jobs": jobs, "replays": told.replays, "scores": told.scores}
        taken = {name: tuple(seen) for name, seen in exchanges.items()}
        seen = _calibrated(replace(run.seen, exchanges={**run.seen.exchanges, **taken}), text)
        found = JUDGES[CHECK](seen, LIMITS)
        if found.verdict is Verdict.FAIL:
            rate.alarms += 1
            rate.messages.append(found.message)
            rate.at_tokens.append(sum(len(read_or_nothing(job).tokens) for job in jobs))
            return


def _with_replies(
    told: Replies, honest: Observation, trusted: EngineClient, planned: Planned, job: Exchange
) -> Replies:
    """The replies so far and those to one more job."""
    fixed = planned.kind != "ids" and reproducible(planned.request)
    known = honest.exchanges["replays"][len(told.replays)]
    replay = known if fixed else ask_again(trusted, planned.kind, planned.request, job)
    scores = [score(trusted, planned.request, job)] if planned.kind in SCORED else []
    return Replies([*told.replays, replay], [*told.scores, *scores])


def file_of(pairings: Mapping[str, Pairing], **more: Json) -> bytes:
    """A calibration file."""
    rows = {
        name: {k: v for k, v in vars(pairing).items() if k != "name"}
        for name, pairing in pairings.items()
    }
    return dumps_file({"schema": SCHEMA, "pairings": rows, **more})
