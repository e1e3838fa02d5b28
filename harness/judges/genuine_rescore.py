"""Re-scoring: every emitted token is what the reference says, greedy, sampled and with logprobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.calibration import Evidence, Replay
from harness.judges.calibrated import calibration_of, pairing_of, reference_health
from harness.judges.rule import (
    Unseen,
    body,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.judges.stream import WHOLE, Stream, answered, asked, is_native, parts_at
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation
from harness.rescore import (
    SCORED,
    GreedyFit,
    Score,
    greedy_fit,
    likely_cause,
    read_scores,
)
from harness.traffic import reproducible

NOT_COMPARED: Final = ("job_id", "cache_prompt")
GREEDY_KINDS: Final = (*SCORED, "chat", WHOLE)


@dataclass(frozen=True)
class _Pair:
    """One request, answered by the engine under test and by the reference."""

    kind: str
    native: bool
    emitted: Stream
    replayed: Stream
    logprob_gaps: Sequence[float]

    @property
    def parts_at(self) -> int | None:
        return parts_at(self.emitted, self.replayed)

    @property
    def comparable(self) -> bool:
        """Whether the reference must say the same: another API leaves the draws to the engine."""
        return self.native or self.kind in GREEDY_KINDS

    def replay(self) -> Replay:
        at = self.parts_at
        return Replay(self.kind, self.emitted.tokens_out if at is None else at, at is not None)


@judge
def rescore(observation: Observation, limits: Limits) -> Finding:
    """The reference replays each request token for token and accepts each greedy token."""
    _same_model(observation)
    pairing = pairing_of(observation)
    pairs = _pairs(observation)
    seen = _evidence(observation, pairs)
    objections = list(pairing.objections(seen))
    wrong = {replay.kind for replay in seen.replays if replay.parted}
    cause = likely_cause(wrong, {pair.kind for pair in pairs}, _fit(seen, pairs))
    need(not objections, f"{'; '.join(objections)}; likely cause: {cause}")
    if len(pairs) < len(fact(observation, "kinds")):
        raise Unseen(f"only {len(pairs)} requests were replayed, and nothing is wrong with them")
    tokens = sum(pair.emitted.tokens_out for pair in pairs)
    least = limit(limits, "min_tokens")
    need(tokens >= least, f"only {tokens} tokens were emitted, wanted {least:.0f}")
    return passed(
        f"{tokens} tokens of {len(pairs)} requests accepted",
        tokens=tokens,
        requests=len(pairs),
        greedy_exact_rate=_fit(seen, pairs).exact_rate,
        worst_margin_logits=seen.worst_margin,
        worst_logprob_gap=seen.worst_logprob_gap,
        logprob_tokens=len(seen.logprob_gaps),
        pairing=pairing.name,
        **calibration_of(observation).label,
    )


def evidence(observation: Observation) -> Evidence:
    """What the reference's replays and scores say of a run, before any threshold."""
    return _evidence(observation, _pairs(observation))


def _evidence(observation: Observation, pairs: Sequence[_Pair]) -> Evidence:
    gaps = [gap for pair in pairs for gap in pair.logprob_gaps]
    replays = [pair.replay() for pair in pairs if pair.comparable]
    return Evidence(_greedy_scores(observation, pairs), replays, gaps)


def _fit(seen: Evidence, pairs: Sequence[_Pair]) -> GreedyFit:
    """How well greedy tokens fit; without token ids what the reference's own answer shares."""
    if seen.scores or all(pair.native for pair in pairs):
        return greedy_fit(seen.scores)
    tokens = sum(pair.emitted.tokens_out for pair in pairs if pair.kind in SCORED)
    shared = sum(_shared_tokens(pair) for pair in pairs if pair.kind in SCORED)
    return GreedyFit(tokens, shared, 0.0)


def _shared_tokens(pair: _Pair) -> int:
    at, said = pair.parts_at, max(1, len(pair.emitted.said))
    return pair.emitted.tokens_out if at is None else pair.emitted.tokens_out * at // said


def _same_model(observation: Observation) -> None:
    digest = fact(observation, "model_sha256")
    got = reference_health(observation).get("model_sha256")
    if got != digest:
        raise Unseen(f"the reference ran model {got}, wanted {digest}: nothing can be compared")


def _pairs(observation: Observation) -> list[_Pair]:
    """Each replayed job with its replay; a replay that saw enough ends before the last job."""
    jobs, replays = exchanges(observation, "jobs"), exchanges(observation, "replays")
    kinds = fact(observation, "kinds")
    if not isinstance(kinds, list) or not len(kinds) >= len(jobs) >= len(replays):
        raise Unseen(f"{len(jobs)} jobs, {len(replays)} replays: wanted one replay for each job")
    return [_pair(k, j, r) for k, j, r in zip(kinds, jobs, replays, strict=False)]


def _pair(kind: str, job: Exchange, replay: Exchange) -> _Pair:
    emitted, replayed = answered(job, kind), answered(replay, kind)
    if _compared(replay) != _drawn_seed(job, emitted) | _compared(job):
        raise Unseen("a replay asked the reference for something else than the job did")
    return _Pair(kind, is_native(job), emitted, replayed, _logprob_gaps(emitted, replayed))


def _logprob_gaps(emitted: Stream, replayed: Stream) -> list[float]:
    """The differences of the logprobs, up to where the two part: beyond, contexts differ."""
    gaps: list[float] = []
    for ours, theirs in zip(emitted.tokens, replayed.tokens, strict=False):
        if ours.raw["id"] != theirs.raw["id"]:
            break
        if "logprob" in ours.raw and "logprob" in theirs.raw:
            gaps.append(abs(float(ours.raw["logprob"]) - float(theirs.raw["logprob"])))
    return gaps


def _drawn_seed(job: Exchange, emitted: Stream) -> dict[str, Json]:
    """The seed that the engine drew where none was asked: its replay has it, for the same draws."""
    told = emitted.started is not None and not reproducible(_compared(job))
    return {"seed": (emitted.started or {})["seed"]} if told else {}


def _compared(seen: Exchange) -> dict[str, Json]:
    return {k: v for k, v in asked(seen).items() if k not in NOT_COMPARED}


def _greedy_scores(observation: Observation, pairs: Sequence[_Pair]) -> list[Score]:
    """The scores of the greedy jobs with plain text: each's own tokens, by the reference."""
    greedy = [pair for pair in pairs if pair.kind in SCORED and pair.native]
    scored = exchanges(observation, "scores") if greedy else ()
    if len(scored) != len(greedy):
        raise Unseen(f"{len(scored)} scores for {len(greedy)} greedy jobs")
    found: list[Score] = []
    for seen, pair in zip(scored, greedy, strict=True):
        if request(seen).get("completion_ids") != pair.emitted.ids:
            raise Unseen("the scored tokens are not those that the engine emitted")
        found += read_scores(body(seen), len(pair.emitted.ids))
    return found


@judge
def late(observation: Observation, limits: Limits) -> Finding:
    """Requests answered first are answered the same at the end of a long run."""
    early, again = exchanges(observation, "early"), exchanges(observation, "late")
    kinds = observation.facts.get("early_kinds") or [""] * len(early)
    if not len(early) == len(again) == len(kinds):
        raise Unseen(f"{len(early)} early requests, {len(again)} late ones")
    last_early, first_late = max(one.sent_ns for one in early), min(one.sent_ns for one in again)
    between_s = (first_late - last_early) / 1e9
    if between_s < limit(limits, "min_between_s"):
        raise Unseen(f"only {between_s:.0f} s lie between early and late requests")
    compared = 0
    for number, (first, last, kind) in enumerate(zip(early, again, kinds, strict=True), start=1):
        if _compared(first) != _compared(last):
            raise Unseen(f"the late request {number} is not the early one")
        parts = parts_at(answered(first, kind), answered(last, kind))
        if reproducible(_compared(first)):
            compared += 1
            need(
                parts is None,
                f"early request {number}, asked again late, differs at token {parts}",
            )
    if not compared:
        raise Unseen("no early request was one whose answer must be the same again")
    jobs = len(exchanges(observation, "jobs"))
    return passed(f"{compared} answers unchanged after {jobs} jobs", between_s=between_s)


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-GENUINE-RESCORE": rescore,
    "G4-GENUINE-LATE": late,
}
