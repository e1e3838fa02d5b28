"""Re-scoring: every emitted token is what the reference says, greedy, sampled and with logprobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.judges.rule import (
    Unseen,
    body,
    exchange,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.judges.stream import Stream, asked, finished, is_native, parts_at
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation
from harness.rescore import GreedyFit, greedy_fit, likely_cause, read_scores

NOT_COMPARED: Final = ("job_id", "cache_prompt")
SCORED_KINDS: Final = ("greedy", "long")
GREEDY_KINDS: Final = (*SCORED_KINDS, "chat")


@dataclass(frozen=True)
class _Pair:
    """One request, answered by the engine under test and by the reference."""

    kind: str
    native: bool
    emitted: Stream
    replayed: Stream
    logprob_gap: float

    @property
    def parts_at(self) -> int | None:
        return parts_at(self.emitted, self.replayed)

    @property
    def comparable(self) -> bool:
        """Whether the reference must say the same: another API leaves the draws to the engine."""
        return self.native or self.kind in GREEDY_KINDS


@judge
def rescore(observation: Observation, limits: Limits) -> Finding:
    """The reference replays each request token for token and accepts each greedy token."""
    _same_model(observation)
    pairs = _pairs(observation)
    fits = _greedy_fits(observation, pairs)
    tokens = sum(pair.emitted.tokens_out for pair in pairs)
    need(
        tokens >= limit(limits, "min_tokens"),
        f"only {tokens} tokens were emitted, wanted {limit(limits, 'min_tokens'):.0f}",
    )
    overall = GreedyFit(
        sum(fit.tokens for fit in fits),
        sum(fit.exact for fit in fits),
        max((fit.worst_margin for fit in fits), default=0.0),
    )
    wrong = [pair for pair in pairs if pair.comparable and pair.parts_at is not None]
    cause = likely_cause({p.kind for p in wrong}, {p.kind for p in pairs}, overall)
    bound = limit(limits, "margin_logits")
    need(
        overall.worst_margin <= bound,
        f"a greedy token lies {overall.worst_margin:.3g} logits below the reference's choice, "
        f"wanted at most {bound}; likely cause: {cause}",
    )
    need(
        not wrong,
        f"{len(wrong)} of {len(pairs)} requests part from the reference's replay, the first "
        f"({wrong[0].kind if wrong else ''}) at token {wrong[0].parts_at if wrong else 0}; "
        f"likely cause: {cause}",
    )
    gap = max((pair.logprob_gap for pair in pairs), default=0.0)
    need(gap <= bound, f"a reported logprob is {gap:.3g} off the reference's, at most {bound}")
    return passed(
        f"{tokens} tokens of {len(pairs)} requests accepted",
        tokens=tokens,
        requests=len(pairs),
        greedy_exact_rate=overall.exact_rate,
        worst_margin_logits=overall.worst_margin,
        worst_logprob_gap=gap,
    )


def _same_model(observation: Observation) -> None:
    digest = fact(observation, "model_sha256")
    got = body(exchange(observation, "reference_health")).get("model_sha256")
    if got != digest:
        raise Unseen(f"the reference ran model {got}, wanted {digest}: nothing can be compared")


def _pairs(observation: Observation) -> list[_Pair]:
    jobs, replays = exchanges(observation, "jobs"), exchanges(observation, "replays")
    kinds = fact(observation, "kinds")
    if not isinstance(kinds, list) or not len(jobs) == len(replays) == len(kinds):
        raise Unseen(f"{len(jobs)} jobs, {len(replays)} replays: wanted one replay for each job")
    return [_pair(k, j, r) for k, j, r in zip(kinds, jobs, replays, strict=True)]


def _pair(kind: str, job: Exchange, replay: Exchange) -> _Pair:
    if _compared(job) != _compared(replay):
        raise Unseen("a replay asked the reference for something else than the job did")
    emitted, replayed = finished(job), finished(replay)
    return _Pair(kind, is_native(job), emitted, replayed, _logprob_gap(emitted, replayed))


def _logprob_gap(emitted: Stream, replayed: Stream) -> float:
    """The largest difference of the logprobs, up to where the two part: beyond, contexts differ."""
    worst = 0.0
    for ours, theirs in zip(emitted.tokens, replayed.tokens, strict=False):
        if ours.raw["id"] != theirs.raw["id"]:
            break
        if "logprob" in ours.raw and "logprob" in theirs.raw:
            worst = max(worst, abs(float(ours.raw["logprob"]) - float(theirs.raw["logprob"])))
    return worst


def _compared(seen: Exchange) -> dict[str, Json]:
    return {k: v for k, v in asked(seen).items() if k not in NOT_COMPARED}


def _greedy_fits(observation: Observation, pairs: Sequence[_Pair]) -> list[GreedyFit]:
    """The fit of each greedy job with plain text: its own tokens, scored by the reference."""
    greedy = [pair for pair in pairs if pair.kind in SCORED_KINDS]
    if not all(pair.native for pair in pairs):
        return [_fit_of_replay(pair) for pair in greedy]
    scored = exchanges(observation, "scores")
    if len(scored) != len(greedy):
        raise Unseen(f"{len(scored)} scores for {len(greedy)} greedy jobs")
    fits = []
    for seen, pair in zip(scored, greedy, strict=True):
        if request(seen).get("completion_ids") != pair.emitted.ids:
            raise Unseen("the scored tokens are not those that the engine emitted")
        fits.append(greedy_fit(read_scores(body(seen), len(pair.emitted.ids))))
    return fits


def _fit_of_replay(pair: _Pair) -> GreedyFit:
    """Without token ids there is no score: what the reference's own greedy answer shares counts."""
    tokens, at = pair.emitted.tokens_out, pair.parts_at
    shared = 1.0 if at is None else at / max(1, len(pair.emitted.said))
    return GreedyFit(tokens, int(tokens * shared), 0.0)


@judge
def late(observation: Observation, limits: Limits) -> Finding:
    """Requests answered first are answered the same at the end of a long run."""
    early, again = exchanges(observation, "early"), exchanges(observation, "late")
    if len(early) != len(again):
        raise Unseen(f"{len(early)} early requests, {len(again)} late ones")
    between_s = (again[0].sent_ns - early[-1].sent_ns) / 1e9
    if between_s < limit(limits, "min_between_s"):
        raise Unseen(f"only {between_s:.0f} s lie between early and late requests")
    for number, (first, last) in enumerate(zip(early, again, strict=True), start=1):
        if _compared(first) != _compared(last):
            raise Unseen(f"the late request {number} is not the early one")
        parts = parts_at(finished(first), finished(last))
        need(parts is None, f"early request {number}, asked again late, differs at token {parts}")
    jobs = len(exchanges(observation, "jobs"))
    return passed(f"{len(early)} answers unchanged after {jobs} jobs", between_s=between_s)


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-GENUINE-RESCORE": rescore,
    "G4-GENUINE-LATE": late,
}
