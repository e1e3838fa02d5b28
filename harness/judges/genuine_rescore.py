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
from harness.judges.stream import Stream, finished
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation
from harness.rescore import GreedyFit, first_difference, greedy_fit, likely_cause, read_scores

NOT_COMPARED: Final = ("job_id", "cache_prompt")


@dataclass(frozen=True)
class _Pair:
    """One request, answered by the engine under test and by the reference."""

    kind: str
    asked: Mapping[str, Json]
    emitted: Stream
    replayed: Stream
    logprob_gap: float

    @property
    def parts_at(self) -> int | None:
        return first_difference(self.emitted.ids, self.replayed.ids)


@judge
def rescore(observation: Observation, limits: Limits) -> Finding:
    """The reference replays each request token for token and accepts each greedy token."""
    _same_model(observation)
    pairs = _pairs(observation)
    fits = _greedy_fits(observation, pairs)
    tokens = sum(len(pair.emitted.ids) for pair in pairs)
    need(
        tokens >= limit(limits, "min_tokens"),
        f"only {tokens} tokens were emitted, wanted {limit(limits, 'min_tokens'):.0f}",
    )
    overall = GreedyFit(
        sum(f.tokens for f in fits), sum(f.exact for f in fits), max(f.worst_margin for f in fits)
    )
    wrong = [pair for pair in pairs if pair.parts_at is not None]
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
    asked, again = _compared(job), _compared(replay)
    if asked != again:
        raise Unseen("a replay asked the reference for something else than the job did")
    emitted, replayed = finished(job), finished(replay)
    gaps = [
        abs(float(ours.raw["logprob"]) - float(theirs.raw["logprob"]))
        for ours, theirs in zip(emitted.tokens, replayed.tokens, strict=False)
        if "logprob" in ours.raw and "logprob" in theirs.raw and ours.token_id == theirs.token_id
    ]
    return _Pair(kind, asked, emitted, replayed, max(gaps, default=0.0))


def _compared(seen: Exchange) -> dict[str, Json]:
    return {k: v for k, v in request(seen).items() if k not in NOT_COMPARED}


def _greedy_fits(observation: Observation, pairs: Sequence[_Pair]) -> list[GreedyFit]:
    """The fit of each greedy job with plain text: its own tokens, scored by the reference."""
    scored = exchanges(observation, "scores")
    greedy = [pair for pair in pairs if pair.kind in ("greedy", "long")]
    if len(scored) != len(greedy):
        raise Unseen(f"{len(scored)} scores for {len(greedy)} greedy jobs")
    fits = []
    for seen, pair in zip(scored, greedy, strict=True):
        if request(seen).get("completion_ids") != pair.emitted.ids:
            raise Unseen("the scored tokens are not those that the engine emitted")
        fits.append(greedy_fit(read_scores(body(seen), len(pair.emitted.ids))))
    return fits


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
        parts = first_difference(finished(first).ids, finished(last).ids)
        need(parts is None, f"early request {number}, asked again late, differs at token {parts}")
    jobs = len(exchanges(observation, "jobs"))
    return passed(f"{len(early)} answers unchanged after {jobs} jobs", between_s=between_s)


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-GENUINE-RESCORE": rescore,
    "G4-GENUINE-LATE": late,
}
