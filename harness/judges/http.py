"""Judges of the HTTP surface: health, execute, the event stream, correlation, end to end."""

import json
import re
import uuid
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from harness.judges.rule import (
    Unseen,
    body,
    by_test,
    exchange,
    exchanges,
    fact,
    fields,
    header,
    judge,
    limit,
    need,
    passed,
    percentile,
    request,
    request_header,
    where,
)
from harness.judges.stream import TokenEvent, finished, identical, read_stream
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation

HEALTH_FIELDS: Final[Mapping[str, str]] = {
    "status": "text",
    "model": "text",
    "model_sha256": "text",
    "resident": "boolean",
    "quant_kind": "text",
    "vram_bytes_used": "count",
    "tokenizer_kind": "text",
    "vocab_size": "count",
    "context_length": "count",
    "kv_dtype": "text",
    "adapter": "text",
    "architecture": "text",
    "device": "text",
    "backend": "text",
    "uptime_seconds": "number",
    "worker_id": "text",
    "version": "text",
}
CORRELATION: Final = "X-Correlation-Id"
TURN_MS: Final = 2.0
"""How often a busy client reads: tokens that come faster may share a piece."""
_VALID_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def healthy(seen: Exchange, model_sha256: str) -> Mapping[str, Json]:
    """A /health answer with every field, healthy, naming the model that the harness gave."""
    table = body(seen)
    fields(table, HEALTH_FIELDS, where(seen))
    need(table["status"] == "healthy", f"/health: status is {table['status']!r}")
    need(table["resident"] is True, "/health: the model is not resident")
    need(
        table["tokenizer_kind"] in ("gguf-bpe", "gguf-spm", "hf-json"),
        f"/health: unknown tokenizer_kind {table['tokenizer_kind']!r}",
    )
    need(
        table["model_sha256"] == model_sha256,
        f"/health: model_sha256 is {table['model_sha256']}, the file's is {model_sha256}",
    )
    for name in ("vram_bytes_used", "vocab_size", "context_length"):
        need(table[name] > 0, f"/health: {name} is 0")
    return table


@judge
def judge_health(observation: Observation, limits: Limits) -> Finding:
    """Probes sent and answered while jobs ran: complete, and fast."""
    sha256 = fact(observation, "model_sha256")
    healthy(exchange(observation, "idle"), sha256)
    jobs = [(seen.sent_ns, finished(seen).terminal_ns) for seen in exchanges(observation, "jobs")]
    times_ms = []
    for probe in exchanges(observation, "probes"):
        healthy(probe, sha256)
        if probe.closed_ns is None:
            raise Unseen("a probe without an end was recorded")
        if any(a <= probe.sent_ns and probe.closed_ns <= (b or 0) for a, b in jobs):
            times_ms.append((probe.closed_ns - probe.sent_ns) / 1e6)
    wanted = limit(limits, "min_probes")
    need(len(times_ms) >= wanted, f"{len(times_ms)} probes during a job, wanted {wanted:.0f}")
    p99_ms, bound_ms = percentile(times_ms, 99), limit(limits, "p99_ms")
    need(p99_ms <= bound_ms, f"/health took {p99_ms:.1f} ms p99, wanted {bound_ms:g} ms")
    return passed(
        f"{len(times_ms)} probes during decode, p99 {p99_ms:.1f} ms",
        p99_ms=p99_ms,
        p50_ms=percentile(times_ms, 50),
        probes=len(times_ms),
    )


def _streams(observation: Observation, limits: Limits) -> Finding:
    seen = exchange(observation, "execute")
    stream, sent = finished(seen), request(seen)
    need(bool(stream.text.strip()), "the completion is empty")
    need(
        len(stream.tokens) <= sent["max_tokens"],
        f"{len(stream.tokens)} tokens, wanted at most {sent['max_tokens']}",
    )
    pieces = len({token.arrival_ns for token in stream.tokens})
    took_ms = ((stream.terminal_ns or 0) - seen.sent_ns) / 1e6
    need(
        pieces >= min(len(stream.tokens) // 2 + 1, max(2, took_ms // TURN_MS)),
        f"{len(stream.tokens)} tokens came in {pieces} pieces in {took_ms:.0f} ms: not streamed",
    )
    ids = body(exchange(observation, "tokenize"))["ids"]
    counted = (stream.started or {})["prompt_tokens"]
    need(counted == len(ids), f"started says {counted} prompt_tokens, /tokenize gives {len(ids)}")
    whole = body(exchange(observation, "detokenize"))
    sent_ids = request(exchange(observation, "detokenize"))["ids"]
    need(sent_ids == stream.ids, "/detokenize was asked about other tokens")
    need(
        whole["text"] == stream.text,
        f"the stream's text {stream.text!r:.80} is not what its ids say: {whole['text']!r:.80}",
    )
    return passed(f"{len(stream.tokens)} tokens streamed: {stream.text!r:.60}", text=stream.text)


def _one_at_a_time(observation: Observation, limits: Limits) -> Finding:
    jobs = [(seen, finished(seen)) for seen in exchanges(observation, "jobs")]
    need(len(jobs) >= 2, "wanted at least two jobs at once")
    last_sent = max(seen.sent_ns for seen, _ in jobs)
    spans = sorted((s.tokens[0].arrival_ns, s.terminal_ns or 0) for _, s in jobs if s.tokens)
    need(len(spans) == len(jobs), "a job gave no token")
    need(last_sent < spans[0][1], "the jobs were not there at the same time")
    for (_, ended), (begun, _) in pairwise(spans):
        need(ended <= begun, "tokens of two jobs came at the same time")
    return passed(f"{len(jobs)} jobs sent at once ran one after the other")


judge_execute = by_test(
    {"test_execute_streams": _streams, "test_one_job_at_a_time": _one_at_a_time}
)


@judge
def judge_sse(observation: Observation, limits: Limits) -> Finding:
    """Every stream is well-formed and ordered, and answers the request that was sent."""
    events = 0
    seen = exchanges(observation, "streams")
    for one in seen:
        stream, sent = finished(one), request(one)
        started = stream.started or {}
        for name in ("job_id", "seed"):
            if name in sent:
                got = started.get(name)
                need(got == sent[name], f"started: {name} is {got!r}, sent was {sent[name]!r}")
        need(stream.metrics is not None, "the stream has no metrics event")
        _check_logprobs(stream.tokens, sent.get("logprobs", False))
        events += len(stream.tokens) + 3
    return passed(f"{len(seen)} streams, {events} events, in order, one terminal each")


def _check_logprobs(tokens: tuple[TokenEvent, ...], wanted: int | bool) -> None:
    for index, token in enumerate(tokens):
        if wanted is False:
            need("logprob" not in token.raw, f"token {index} has a logprob that nobody asked for")
            continue
        fields(token.raw, {"logprob": "number", "top": "list"}, f"token {index}")
        need(token.raw["logprob"] <= 1e-6, f"token {index}: logprob {token.raw['logprob']} > 0")
        got = len(token.raw["top"])
        need(got == wanted, f"token {index}: {got} alternatives, wanted {wanted}")


@judge
def judge_correlation(observation: Observation, limits: Limits) -> Finding:
    """Ids are echoed, made up or replaced; every narration line of a request carries its own."""
    lines = narration(fact(observation, "log_lines"))
    seen_ids = []
    for one in exchanges(observation, "jobs"):
        finished(one)
        answered = _answered_id(one)
        job_id = request(one)["job_id"]
        about = [line for line in lines if line.get("job_id") == job_id]
        events = {line.get("event") for line in about}
        for event in ("execute_start", "execute_end"):
            need(event in events, f"narration: no {event} line for job {job_id}")
        for line in about:
            got = line.get("correlation_id")
            need(got == answered, f"narration: {line.get('event')} says {got!r}, not {answered!r}")
        seen_ids.append(answered)
    seen_ids += [_answered_id(one) for one in exchanges(observation, "probes")]
    need(len(set(seen_ids)) == len(seen_ids), "a correlation id was given to two requests")
    return passed(f"{len(seen_ids)} requests, each with the right correlation id")


def _answered_id(seen: Exchange) -> str:
    answered = header(seen, CORRELATION)
    need(answered is not None, f"{where(seen)}: no {CORRELATION} in the answer")
    assert answered is not None
    sent = request_header(seen, CORRELATION)
    if sent is not None and _VALID_ID.fullmatch(sent):
        need(answered == sent, f"{where(seen)}: sent id {sent!r}, got {answered!r}")
    else:
        need(answered != sent, f"{where(seen)}: the hostile id {sent!r:.60} was echoed")
        need(_is_uuid(answered), f"{where(seen)}: wanted a UUID for {sent!r:.60}, got {answered!r}")
    return answered


def narration(lines: list[str]) -> list[Mapping[str, Json]]:
    """The narration's JSON objects; other lines are left out."""
    parsed: list[Mapping[str, Json]] = []
    for line in lines:
        try:
            table = json.loads(line)
        except ValueError:
            continue
        if isinstance(table, dict):
            parsed.append(table)
    return parsed


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


@judge
def judge_e2e(observation: Observation, limits: Limits) -> Finding:
    """The same greedy request, many times: identical tokens, none from an earlier answer."""
    runs = exchanges(observation, "runs")
    wanted = limit(limits, "min_repeats")
    need(len(runs) >= wanted, f"{len(runs)} repeats, wanted {wanted:.0f}")
    ids = identical(runs, "repeats")
    need(bool(ids), "the completion is empty")
    other = exchange(observation, "other_prompt")
    need(request(other)["prompt"] != request(runs[0])["prompt"], "the other prompt is the same")
    need(finished(other).ids != ids, "another prompt gave the same tokens: the prompt is ignored")
    for one in runs:
        stream = read_stream(one)
        cached = (stream.started or {})["cached_tokens"]
        need(cached == 0, f"{cached} tokens were cached although nobody allowed it")
    return passed(f"{len(runs)} repeats gave the same {len(ids)} tokens", tokens=ids)


JUDGES: Final[Mapping[str, Judge]] = {
    "G1-HTTP-HEALTH": judge_health,
    "G1-HTTP-EXECUTE": judge_execute,
    "G1-HTTP-SSE": judge_sse,
    "G1-HTTP-CORRELATION": judge_correlation,
    "G1-E2E": judge_e2e,
}
