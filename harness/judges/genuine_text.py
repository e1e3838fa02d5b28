"""Black-box probes whose verdict is exact: counts, lengths, stops, seeds, prefixes, context."""

import math
from collections.abc import Mapping
from typing import Final

from harness.judges.rule import (
    Unseen,
    body,
    exchange,
    exchanges,
    fact,
    header,
    judge,
    limit,
    need,
    passed,
    request,
    where,
)
from harness.judges.stream import Stream, finished
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation
from harness.rescore import first_difference
from harness.significance import signed_rank_p


@judge
def prefix(observation: Observation, limits: Limits) -> Finding:
    """The greedy continuation of prompt + first k own tokens is the rest of the answer."""
    wholes, rests = exchanges(observation, "wholes"), exchanges(observation, "rests")
    prompts = exchanges(observation, "prompts")
    for number, (whole, rest, prompt) in enumerate(zip(wholes, rests, prompts, strict=True), 1):
        ids, prompt_ids = finished(whole).ids, list(body(prompt)["ids"])
        asked = request(rest)["prompt_ids"]
        k = len(asked) - len(prompt_ids)
        if asked != prompt_ids + ids[:k] or not 0 < k < len(ids):
            raise Unseen(f"continuation {number} did not start from the answer's own tokens")
        parts = first_difference(finished(rest).ids, ids[k:])
        need(parts is None, f"answer {number}: continued from token {k}, differs {parts} later")
    return passed(f"{len(wholes)} answers continue themselves")


@judge
def count(observation: Observation, limits: Limits) -> Finding:
    """One event a token, every token's bytes in the text, and the same count everywhere."""
    jobs, texts = exchanges(observation, "jobs"), exchanges(observation, "texts")
    tokens = 0
    for number, (job, text) in enumerate(zip(jobs, texts, strict=True), 1):
        stream = finished(job)
        if request(text)["ids"] != stream.ids:
            raise Unseen(f"job {number}: other ids were detokenized than were emitted")
        need(
            body(text)["text"] == stream.text,
            f"job {number}: its {len(stream.ids)} token ids spell another text than was streamed",
        )
        tokens += len(stream.ids)
    _empty_tokens_are_partial(observation, [finished(job) for job in jobs])
    return passed(f"{tokens} tokens counted alike in {len(jobs)} jobs", tokens=tokens)


def _empty_tokens_are_partial(observation: Observation, streams: list[Stream]) -> None:
    """A token without text holds an unfinished character, or is the one that ends the text."""
    spelled = {request(one)["ids"][0]: one for one in observation.exchanges.get("silent", ())}
    for stream in streams:
        assert stream.end is not None
        last = len(stream.tokens) - 1 if stream.end["finish_reason"] == "stop" else None
        for index, token in enumerate(stream.tokens):
            if token.text:
                continue
            if token.token_id not in spelled:
                raise Unseen(f"token {token.token_id} came without text and was not detokenized")
            need(
                index == last or body(spelled[token.token_id])["dropped_bytes"] > 0,
                f"token {token.token_id} was counted but has no bytes of its own",
            )


@judge
def same_without_stream(observation: Observation, limits: Limits) -> Finding:
    """The answer in one piece equals the stream."""
    pairs = list(
        zip(exchanges(observation, "streams"), exchanges(observation, "whole"), strict=True)
    )
    for number, (streamed, whole) in enumerate(pairs, 1):
        stream, answer = finished(streamed), body(whole)
        choice, usage = answer["choices"][0], answer["usage"]
        need(choice["text"] == stream.text, f"answer {number}: stream and whole answer differ")
        need(
            usage["completion_tokens"] == len(stream.ids),
            f"answer {number}: {usage['completion_tokens']} tokens reported as usage, "
            f"{len(stream.ids)} streamed",
        )
    return passed(f"{len(pairs)} answers equal with and without a stream")


@judge
def seed(observation: Observation, limits: Limits) -> Finding:
    """The same seed gives the same answer, different seeds different ones."""
    by_seed: dict[int, list[list[int]]] = {}
    for job in exchanges(observation, "jobs"):
        stream = finished(job)
        asked = request(job)["seed"]
        assert stream.started is not None
        need(stream.started["seed"] == asked, f"seed {asked} asked, {stream.started['seed']} used")
        by_seed.setdefault(asked, []).append(stream.ids)
    repeated = [answers for answers in by_seed.values() if len(answers) > 1]
    if len(by_seed) < 4 or not repeated:
        raise Unseen("wanted at least 4 seeds and one of them twice")
    ignored = any(answer != answers[0] for answers in repeated for answer in answers)
    need(not ignored, "the same seed gave different answers: the seed is ignored")
    different = {tuple(answers[0]) for answers in by_seed.values()}
    need(len(different) > len(by_seed) // 2, f"{len(by_seed)} seeds gave {len(different)} answers")
    return passed(f"{len(by_seed)} seeds honoured", answers=len(different))


@judge
def temperature(observation: Observation, limits: Limits) -> Finding:
    """Hot answers leave the greedy one earlier than cool ones; near zero they do not leave it."""
    greedy = [finished(job).ids for job in exchanges(observation, "greedy")]
    cool = _leaves_at(observation, "cool", greedy)
    hot = _leaves_at(observation, "hot", greedy)
    p = signed_rank_p([float(h) for h in hot], [float(c) for c in cool])
    bound = limit(limits, "p_value")
    need(p <= bound, f"temperature makes no difference: p = {p:.2g}, wanted at most {bound:g}")
    limit_like = _leaves_at(observation, "near_zero", greedy)
    kept = sum(at == len(ids) for at, ids in zip(limit_like, greedy, strict=True))
    need(
        2 * kept >= len(greedy),
        f"near temperature zero only {kept} of {len(greedy)} answers are the greedy one",
    )
    return passed("temperature is applied", p_value=p, near_zero_greedy=kept)


def _leaves_at(observation: Observation, name: str, greedy: list[list[int]]) -> list[int]:
    """At which token each sampled answer leaves the greedy one of the same prompt."""
    jobs = exchanges(observation, name)
    if len(jobs) != len(greedy):
        raise Unseen(f"{len(jobs)} {name} answers for {len(greedy)} greedy ones")
    found = []
    for job, ids in zip(jobs, greedy, strict=True):
        at = first_difference(finished(job).ids, ids)
        found.append(len(ids) if at is None else at)
    return found


@judge
def length(observation: Observation, limits: Limits) -> Finding:
    """max_tokens is exact, and an earlier end is one that the model really chose."""
    jobs = exchanges(observation, "jobs")
    ended = []
    for job in jobs:
        stream = finished(job)
        wanted = request(job)["max_tokens"]
        assert stream.end is not None
        need(len(stream.ids) <= wanted, f"{len(stream.ids)} tokens for max_tokens {wanted}")
        if stream.end["finish_reason"] == "length":
            need(
                len(stream.ids) == wanted,
                f"finish_reason length after {len(stream.ids)} of {wanted} tokens",
            )
        else:
            ended.append(stream)
    checked = observation.exchanges.get("continued", ())
    if len(checked) != len(ended):
        raise Unseen(f"{len(ended)} answers ended early, {len(checked)} were continued")
    for again, stream in zip(checked, ended, strict=True):
        need(bool(stream.ids), "an answer ended without the token that ends it")
        sent, before = request(again)["prompt_ids"], stream.ids[:-1]
        if len(sent) <= len(before) or sent[len(sent) - len(before) :] != before:
            raise Unseen("a continuation did not start from the ended answer")
        need(
            finished(again, reason="stop").ids == stream.ids[-1:],
            "an answer that ended by itself goes on when asked again: it was cut",
        )
    return passed(f"{len(jobs)} lengths exact, {len(ended)} natural ends confirmed")


@judge
def stop(observation: Observation, limits: Limits) -> Finding:
    """The answer ends before the first stop sequence, and the sequence is not emitted."""
    frees, stopped = exchanges(observation, "free"), exchanges(observation, "stopped")
    for number, (free, cut) in enumerate(zip(frees, stopped, strict=True), 1):
        text, sequence = finished(free).text, request(cut)["stop"][0]
        if sequence not in text:
            raise Unseen(f"stop sequence {number} is not in the free answer")
        got = finished(cut, reason="stop_sequence").text
        need(
            got == text[: text.index(sequence)],
            f"stop {number}: wanted the answer up to its stop sequence, got {len(got)} characters",
        )
    return passed(f"{len(frees)} stop sequences honoured")


@judge
def context(observation: Observation, limits: Limits) -> Finding:
    """A word at the start of a long prompt reaches the distribution of the next token."""
    counts = [len(body(one)["ids"]) for one in exchanges(observation, "prompts")]
    pairs = list(zip(exchanges(observation, "one"), exchanges(observation, "other"), strict=True))
    for number, (one, other) in enumerate(pairs, 1):
        first, second = finished(one), finished(other)
        assert first.started is not None
        need(
            first.started["prompt_tokens"] == counts[number - 1],
            f"prompt {number}: {first.started['prompt_tokens']} tokens used, "
            f"{counts[number - 1]} given",
        )
        need(
            _fingerprint(first) != _fingerprint(second),
            f"prompt {number}: another first word changes nothing: the context was cut",
        )
    longest = max(counts)
    need(longest >= limit(limits, "min_prompt_tokens"), f"the longest prompt has {longest} tokens")
    return passed(f"{len(pairs)} long prompts read from their start", prompt_tokens=longest)


def _fingerprint(stream: Stream) -> list[tuple[int, float]]:
    return [(token.token_id, float(token.raw["logprob"])) for token in stream.tokens]


@judge
def canary(observation: Observation, limits: Limits) -> Finding:
    """A request gives the same answer, to the last bit, whatever secret was asked before it."""
    word = str(fact(observation, "canary"))
    answers = exchanges(observation, "answers")
    first = finished(answers[0])
    for number, answer in enumerate(answers, 1):
        stream = finished(answer)
        need(word not in stream.text, f"answer {number} contains the canary of another request")
        need(
            _fingerprint(stream) == _fingerprint(first),
            f"answer {number} changed after another request",
        )
    planted = sum(word in str(request(one)) for one in exchanges(observation, "between"))
    if planted < 2 or any(word in str(request(one)) for one in answers):
        raise Unseen("the canary was not planted as meant")
    return passed(f"{len(answers)} answers untouched by {planted} canaries")


@judge
def logprob(observation: Observation, limits: Limits) -> Finding:
    """Reported distributions are possible, and as often right as they say."""
    hits, expected, variance, tokens = 0, 0.0, 0.0, 0
    for job in exchanges(observation, "jobs"):
        for token in finished(job).tokens:
            top = _checked_top(token.raw)
            best_p = math.exp(top[0][1])
            hits += token.token_id == top[0][0]
            expected += best_p
            variance += best_p * (1 - best_p)
            tokens += 1
    z = (hits - expected) / math.sqrt(variance) if variance > 0 else 0.0
    p = math.erfc(abs(z) / math.sqrt(2))
    need(
        p >= limit(limits, "p_value"),
        f"the best token was drawn {hits} times, by its logprobs {expected:.0f} were due "
        f"(p = {p:.2g})",
    )
    return passed(f"{tokens} distributions agree with what was drawn", z=z, p_value=p)


def _checked_top(raw: Mapping[str, Json]) -> list[tuple[int, float]]:
    top = [(int(entry["id"]), float(entry["logprob"])) for entry in raw.get("top", [])]
    need(bool(top), "a token came without its alternatives")
    values = [value for _, value in top]
    need(values == sorted(values, reverse=True), "alternatives are not in order")
    total = math.fsum(math.exp(value) for value in values)
    need(total <= 1 + 1e-4, f"the alternatives' probabilities sum to {total:.4f}")
    own = dict(top).get(int(raw["id"]))
    need(
        own is None or abs(own - float(raw["logprob"])) < 1e-6,
        "a token's logprob differs from its own entry among the alternatives",
    )
    need(
        own is not None or float(raw["logprob"]) <= values[-1] + 1e-6, "a better token is left out"
    )
    return top


@judge
def metrics(observation: Observation, limits: Limits) -> Finding:
    """The engine's counters rose by exactly what was seen."""
    jobs = [finished(job) for job in exchanges(observation, "jobs")]
    before, after = (_counters(exchange(observation, name)) for name in ("before", "after"))
    tokens = sum(len(job.ids) for job in jobs)
    for name, wanted in (
        ("worker_tokens_generated_total", tokens),
        ("worker_requests_total", len(jobs)),
    ):
        rose = after.get(name, 0.0) - before.get(name, 0.0)
        need(rose == wanted, f"{name} rose by {rose:g}, {wanted} were seen")
    return passed(f"counters agree with {tokens} tokens of {len(jobs)} jobs")


def _counters(seen: Exchange) -> dict[str, float]:
    need(seen.status == 200, f"{where(seen)}: wanted status 200, got {seen.status}")
    need((header(seen, "Content-Type") or "").startswith("text/plain"), "metrics are no text")
    totals: dict[str, float] = {}
    for line in seen.body.decode("utf-8").splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and name:
            bare = name.partition("{")[0]
            totals[bare] = totals.get(bare, 0.0) + float(value)
    return totals


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-GENUINE-PREFIX": prefix,
    "G4-GENUINE-COUNT": count,
    "G4-GENUINE-STREAM": same_without_stream,
    "G4-GENUINE-SEED": seed,
    "G4-GENUINE-TEMPERATURE": temperature,
    "G4-GENUINE-LENGTH": length,
    "G4-GENUINE-STOP": stop,
    "G4-GENUINE-CONTEXT": context,
    "G4-GENUINE-CANARY": canary,
    "G4-GENUINE-LOGPROB": logprob,
    "G4-GENUINE-METRICS": metrics,
}
