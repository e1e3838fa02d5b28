"""Black-box probes whose verdict is exact: counts, lengths, stops, seeds, context."""

import math
from collections.abc import Mapping
from typing import Final

from harness.judges.alternatives import checked_top
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
from harness.judges.stream import Stream, asked, finished, is_native, parts_at, read_whole
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation
from harness.significance import signed_rank_p


@judge
def count(observation: Observation, limits: Limits) -> Finding:
    """One event a token, every token's bytes in the text, and the same count everywhere."""
    jobs = exchanges(observation, "jobs")
    if not is_native(jobs[0]):
        return _counted_by_logprobs([finished(job) for job in jobs])
    texts = exchanges(observation, "texts")
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


def _counted_by_logprobs(streams: list[Stream]) -> Finding:
    """Usage is the number of tokens with a logprob; the one that ends the text may have none."""
    tokens = 0
    for number, stream in enumerate(streams, 1):
        assert stream.end is not None
        if not all("logprob" in token.raw for token in stream.tokens):
            raise Unseen(f"job {number}: a token came without its logprob")
        silent = stream.tokens_out - len(stream.tokens)
        ended = stream.end["finish_reason"] == "stop"
        need(
            0 <= silent <= ended,
            f"job {number}: usage says {stream.tokens_out} tokens, {len(stream.tokens)} came",
        )
        tokens += stream.tokens_out
    return passed(f"{tokens} tokens counted alike in {len(streams)} jobs", tokens=tokens)


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
        stream, answer = finished(streamed), read_whole(whole)
        need(answer.text == stream.text, f"answer {number}: stream and whole answer differ")
        need(
            answer.tokens_out == stream.tokens_out,
            f"answer {number}: {answer.tokens_out} tokens reported as usage, "
            f"{stream.tokens_out} streamed",
        )
    return passed(f"{len(pairs)} answers equal with and without a stream")


@judge
def seed(observation: Observation, limits: Limits) -> Finding:
    """The same seed gives the same answer, different seeds different ones."""
    by_seed: dict[int, list[list[int] | list[str]]] = {}
    for job in exchanges(observation, "jobs"):
        stream = finished(job)
        wanted = asked(job)["seed"]
        used = stream.started["seed"] if stream.started else wanted
        need(used == wanted, f"seed {wanted} asked, {used} used")
        by_seed.setdefault(wanted, []).append(stream.said)
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
    greedy = [finished(job) for job in exchanges(observation, "greedy")]
    cool = _leaves_at(observation, "cool", greedy)
    hot = _leaves_at(observation, "hot", greedy)
    p = signed_rank_p([float(h) for h in hot], [float(c) for c in cool])
    bound = limit(limits, "p_value")
    need(p <= bound, f"temperature makes no difference: p = {p:.2g}, wanted at most {bound:g}")
    limit_like = _leaves_at(observation, "near_zero", greedy)
    kept = sum(at == len(one.said) for at, one in zip(limit_like, greedy, strict=True))
    need(
        2 * kept >= len(greedy),
        f"near temperature zero only {kept} of {len(greedy)} answers are the greedy one",
    )
    return passed("temperature is applied", p_value=p, near_zero_greedy=kept)


def _leaves_at(observation: Observation, name: str, greedy: list[Stream]) -> list[int]:
    """At which token, or character, each sampled answer leaves the greedy one of its prompt."""
    jobs = exchanges(observation, name)
    if len(jobs) != len(greedy):
        raise Unseen(f"{len(jobs)} {name} answers for {len(greedy)} greedy ones")
    found = []
    for job, one in zip(jobs, greedy, strict=True):
        at = parts_at(finished(job), one)
        found.append(len(one.said) if at is None else at)
    return found


@judge
def length(observation: Observation, limits: Limits) -> Finding:
    """max_tokens is exact, and an earlier end is one that the model really chose."""
    jobs = exchanges(observation, "jobs")
    ended = []
    for job in jobs:
        stream = finished(job)
        wanted, got = asked(job)["max_tokens"], stream.tokens_out
        assert stream.end is not None
        need(got <= wanted, f"{got} tokens for max_tokens {wanted}")
        if stream.end["finish_reason"] == "length":
            need(got == wanted, f"finish_reason length after {got} of {wanted} tokens")
        else:
            ended.append(stream)
    checked = observation.exchanges.get("continued", ())
    if len(checked) != len(ended):
        raise Unseen(f"{len(ended)} answers ended early, {len(checked)} were continued")
    for again, stream in zip(checked, ended, strict=True):
        _ends_again(again, stream)
    return passed(f"{len(jobs)} lengths exact, {len(ended)} natural ends confirmed")


def _ends_again(again: Exchange, stream: Stream) -> None:
    """Asked to go on after its own text, the model ends at once."""
    if is_native(again):
        need(bool(stream.ids), "an answer ended without the token that ends it")
        sent, before = request(again)["prompt_ids"], stream.ids[:-1]
        started = len(sent) > len(before) and sent[len(sent) - len(before) :] == before
        ends = finished(again, reason="stop").ids == stream.ids[-1:]
    else:
        started = str(asked(again)["prompt"]).endswith(stream.text)
        ends = not finished(again, reason="stop").text
    if not started:
        raise Unseen("a continuation did not start from the ended answer")
    need(ends, "an answer that ended by itself goes on when asked again: it was cut")


@judge
def stop(observation: Observation, limits: Limits) -> Finding:
    """The answer ends before the first stop sequence, and the sequence is not emitted."""
    frees, stopped = exchanges(observation, "free"), exchanges(observation, "stopped")
    for number, (free, cut) in enumerate(zip(frees, stopped, strict=True), 1):
        text, sequence = finished(free).text, asked(cut)["stop"][0]
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
    pairs = list(zip(exchanges(observation, "one"), exchanges(observation, "other"), strict=True))
    counts = []
    for number, (one, other) in enumerate(pairs, 1):
        first, second = finished(one), finished(other)
        counts.append(_prompt_tokens(observation, number, one, first))
        need(
            _fingerprint(first) != _fingerprint(second),
            f"prompt {number}: another first word changes nothing: the context was cut",
        )
    longest = max(counts)
    need(longest >= limit(limits, "min_prompt_tokens"), f"the longest prompt has {longest} tokens")
    return passed(f"{len(pairs)} long prompts read from their start", prompt_tokens=longest)


def _prompt_tokens(observation: Observation, number: int, seen: Exchange, stream: Stream) -> int:
    """The prompt's tokens as used: those that it has, or where nobody counts, one a word at least.

    Broken where the engine reports others.
    """
    used = stream.prompt_tokens
    if is_native(seen):
        given = len(body(exchanges(observation, "prompts")[number - 1])["ids"])
        need(used == given, f"prompt {number}: {used} tokens used, {given} given")
    else:
        words = len(str(asked(seen)["prompt"]).split())
        need(used >= words, f"prompt {number}: {used} tokens used for {words} words")
    return used


def _fingerprint(stream: Stream) -> list[tuple[Json, float]]:
    if not all("logprob" in token.raw for token in stream.tokens):
        raise Unseen("the tokens carry no logprobs")
    return [(token.raw["id"], float(token.raw["logprob"])) for token in stream.tokens]


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
    planted = sum(word in str(asked(one)) for one in exchanges(observation, "between"))
    if planted < 2 or any(word in str(asked(one)) for one in answers):
        raise Unseen("the canary was not planted as meant")
    return passed(f"{len(answers)} answers untouched by {planted} canaries")


@judge
def logprob(observation: Observation, limits: Limits) -> Finding:
    """Reported distributions are possible, and as often right as they say."""
    hits, expected, variance, tokens = 0, 0.0, 0.0, 0
    for job in exchanges(observation, "jobs"):
        for token in finished(job).tokens:
            top = checked_top(token.raw)
            best_p = math.exp(top[0][1])
            hits += token.raw["id"] == top[0][0]
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
