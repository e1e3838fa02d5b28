"""Judges of determinism: equal requests give equal ids and logprobs, to the last bit."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from harness.judges.rule import (
    Unseen,
    body,
    by_test,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.judges.stream import Stream, asked, finished
from harness.observation import Exchange, Finding, Judge, Limits, Observation
from harness.rescore import read_scores

Bits = list[tuple[int, str, tuple[tuple[int, str], ...]]]
"""A token's id, its logprob and its alternatives; numbers as their shortest exact text."""


def bits(stream: Stream) -> Bits:
    """All that a stream says of its tokens, with every bit of its numbers."""
    rows: Bits = []
    for token in stream.tokens:
        logprob = token.raw.get("logprob")
        if logprob is None:
            raise Unseen("the tokens carry no logprobs")
        top = tuple((int(e["id"]), float(e["logprob"]).hex()) for e in token.raw["top"])
        rows.append((token.token_id, float(logprob).hex(), top))
    need(bool(rows), "a stream without tokens")
    return rows


def _same_request(runs: Sequence[Exchange], *ignored: str) -> dict[str, Any]:
    names = {"job_id", *ignored}
    sent = [{k: v for k, v in asked(run).items() if k not in names} for run in runs]
    if any(one != sent[0] for one in sent):
        raise Unseen("the requests themselves differ")
    jobs = {asked(run).get("job_id", run.sent_ns) for run in runs}
    need(len(jobs) == len(runs), "a job_id stands twice")
    return sent[0]


def _bitwise(runs: Sequence[Exchange], what: str, *ignored: str) -> Bits:
    """All runs of one request, and their streams, are equal; returns what they say."""
    _same_request(runs, *ignored)
    first = bits(finished(runs[0]))
    for number, run in enumerate(runs[1:], start=2):
        got = bits(finished(run))
        at = next((i for i, (a, b) in enumerate(zip(first, got, strict=False)) if a != b), None)
        need(
            got == first,
            f"{what}: run {number} differs from run 1 at token {'count' if at is None else at}",
        )
    return first


def _uncached(runs: Sequence[Exchange]) -> None:
    for run in runs:
        cached = (finished(run).started or {})["cached_tokens"]
        need(cached == 0, f"{cached} tokens were cached although nobody allowed it")


@judge
def repeat(observation: Observation, limits: Limits) -> Finding:
    """One sampled request many times: ids and logprobs are equal, none is reused."""
    runs, wanted = exchanges(observation, "runs"), limit(limits, "min_repeats")
    need(len(runs) >= wanted, f"{len(runs)} repeats, wanted {wanted:.0f}")
    if request(runs[0])["temperature"] == 0:
        raise Unseen("the request is greedy: its draws are not seen")
    tokens = _bitwise(runs, "repeats")
    _uncached(runs)
    return passed(f"{len(runs)} repeats, {len(tokens)} tokens each, bitwise equal")


@judge
def restart(observation: Observation, limits: Limits) -> Finding:
    """The requests of before, in a new process, give the same bits."""
    first, second = fact(observation, "processes")
    if None in first or None in second or first == second:
        raise Unseen(f"wanted two processes, got {first} and {second}")
    pairs = list(
        zip(exchanges(observation, "before"), exchanges(observation, "after"), strict=True)
    )
    tokens = sum(len(_bitwise(pair, "after a restart")) for pair in pairs)
    return passed(f"{len(pairs)} requests, {tokens} tokens, bitwise equal after a restart")


def _after_others(observation: Observation, limits: Limits) -> Finding:
    runs, others = exchanges(observation, "runs"), exchanges(observation, "others")
    _different(others, runs)
    _bitwise(runs, "after another request")
    between = [
        any(a.sent_ns < other.sent_ns < b.sent_ns for other in others) for a, b in pairwise(runs)
    ]
    need(len(between) >= 3, f"{len(runs)} runs, wanted at least 4")
    if not all(between):
        raise Unseen("no other request ran between two runs")
    return passed(f"{len(runs)} runs bitwise equal, {len(others)} other requests between them")


def _queued(observation: Observation, limits: Limits) -> Finding:
    runs, others = exchanges(observation, "runs"), exchanges(observation, "others")
    _different(others, runs)
    _bitwise(runs, "in the queue")
    spans = [(other.sent_ns, finished(other).terminal_ns or 0) for other in others]
    positions = [sum(a < run.sent_ns < b for a, b in spans) for run in runs]
    if len(set(positions)) < 3:
        raise Unseen(f"the requests stood at the positions {sorted(set(positions))} alone")
    return passed(f"bitwise equal at the queue positions {positions}", positions=positions)


def _different(others: Sequence[Exchange], runs: Sequence[Exchange]) -> None:
    for other in others:
        finished(other)
    same = {k: v for k, v in request(runs[0]).items() if k != "job_id"}
    if any({k: v for k, v in request(o).items() if k != "job_id"} == same for o in others):
        raise Unseen("another request is the same request")


@judge
def cache(observation: Observation, limits: Limits) -> Finding:
    """With and without cache_prompt, and after it: the same bits; reuse only where allowed."""
    plain, again = exchanges(observation, "plain"), exchanges(observation, "plain_again")
    cached = exchanges(observation, "cached")
    if len(cached) != 2 * len(plain) or len(again) != len(plain):
        raise Unseen("wanted each request twice plain and twice with cache_prompt")
    _uncached([*plain, *again])
    reused = 0
    for number, (one, other) in enumerate(zip(plain, again, strict=True)):
        with_cache = (cached[number], cached[number + len(plain)])
        if not all(request(run).get("cache_prompt") is True for run in with_cache):
            raise Unseen("cache_prompt was not asked for")
        _bitwise([one, *with_cache, other], "with cache_prompt", "cache_prompt")
        for run in with_cache:
            started = finished(run).started or {}
            reused += started["cached_tokens"]
            need(
                started["cached_tokens"] < started["prompt_tokens"],
                "a whole prompt was reused: nothing was computed",
            )
    return passed(
        f"{len(plain)} requests bitwise equal; {reused} prompt tokens were reused", reused=reused
    )


@judge
def prefill_decode(observation: Observation, limits: Limits) -> Finding:
    """The logprob of each token is the same from decode (streamed) and from prefill (/score).

    The bound is a share of the spread of the 20 best logprobs, which is less than the range of
    all logits: the rule is stricter than the limit.
    """
    ratio, worst, positions = limit(limits, "logit_bound_ratio"), 0.0, 0
    rows = zip(
        exchanges(observation, "streams"),
        exchanges(observation, "prompts"),
        exchanges(observation, "scores"),
        strict=True,
    )
    for seen, prompt, score in rows:
        stream = finished(seen)
        asked = request(score)
        if asked["completion_ids"] != stream.ids or asked["prompt_ids"] != body(prompt)["ids"]:
            raise Unseen("other tokens were scored than those that were streamed")
        answer = body(score)
        read_scores(answer, len(stream.ids))
        for index, (token, row) in enumerate(zip(stream.tokens, answer["scores"], strict=True)):
            top = [float(entry["logprob"]) for entry in token.raw["top"]]
            need(len(top) >= 2, f"token {index}: wanted alternatives")
            bound = ratio * (max(top) - min(top))
            gap = abs(float(token.raw["logprob"]) - float(row["logprob"]))
            need(
                math.isfinite(gap) and gap <= bound,
                f"token {index}: logprob {token.raw['logprob']} from decode, "
                f"{row['logprob']} from prefill, wanted within {bound:.4f}",
            )
            worst, positions = max(worst, gap), positions + 1
    need(positions > 0, "no position was compared")
    return passed(
        f"{positions} positions, prefill and decode differ by at most {worst:.2g}",
        positions=positions,
        worst=worst,
    )


@judge
def control(observation: Observation, limits: Limits) -> Finding:
    """At temperature 1 each seed gives its own tokens, otherwise all the others prove nothing."""
    runs = exchanges(observation, "runs")
    sent = _same_request(runs, "seed")
    if sent["temperature"] != 1.0:
        raise Unseen("the control is about temperature 1")
    seeds = {asked(run)["seed"] for run in runs}
    need(len(seeds) == len(runs) >= 4, f"{len(seeds)} seeds in {len(runs)} runs, wanted 4 or more")
    outcomes = {tuple(finished(run).said) for run in runs}
    need(len(outcomes) == len(runs), f"{len(runs)} seeds gave only {len(outcomes)} completions")
    return passed(f"{len(runs)} seeds gave {len(outcomes)} completions")


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-DETERMINISM-REPEAT": repeat,
    "G4-DETERMINISM-RESTART": restart,
    "G4-DETERMINISM-ORDER": by_test(
        {
            "test_others_change_nothing": _after_others,
            "test_queue_positions_change_nothing": _queued,
        }
    ),
    "G4-DETERMINISM-CACHE": cache,
    "G4-DETERMINISM-PREFILL-DECODE": prefill_decode,
    "G4-DETERMINISM-CONTROL": control,
}
