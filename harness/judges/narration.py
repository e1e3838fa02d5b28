"""Judges of narration: every event with its numbers, and nothing that a client said."""

from collections.abc import Mapping, Sequence
from typing import Final

from harness.judges.rule import (
    Unseen,
    exchange,
    exchanges,
    fact,
    fields,
    json_object,
    judge,
    need,
    passed,
    request,
    status,
)
from harness.judges.stream import failed, finished
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation

SHARED: Final = {
    "timestamp": "text",
    "level": "text",
    "actor": "text",
    "action": "text",
    "target": "text",
    "human": "text",
    "worker_id": "text",
    "model_ref": "text",
    "device": "text",
    "event": "text",
}
MAX_HUMAN_CHARS: Final = 100
_REQUEST: Final = {"correlation_id": "text"}
_JOB: Final = {**_REQUEST, "job_id": "text", "prompt_sha256": "text", "tokens_in": "count"}
_TIMED: Final = {"duration_ms": "number"}
EVENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "startup": {},
    "model_load_start": {},
    "model_load_progress": {"percent": "count", "bytes_loaded": "count", "bytes_total": "count"},
    "model_load_complete": _TIMED,
    "ready": _TIMED,
    "execute_start": _JOB,
    "execute_end": {
        **_JOB,
        **_TIMED,
        "tokens_out": "count",
        "ttft_ms": "number",
        "decode_ms": "number",
    },
    "cancel": {**_JOB, **_TIMED, "tokens_out": "count"},
    "error": {**_REQUEST, "error_kind": "text"},
    "residency_check": _TIMED,
    "shutdown": _TIMED,
}
PLANTED: Final = ("prompt", "chat", "refused", "stop", "header", "path")


@judge
def narrated(observation: Observation, limits: Limits) -> Finding:
    """Every event was told, each line with its fields, and the numbers are those of the streams."""
    ended = fact(observation, "exit")
    need(ended["code"] == 0, f"exit code {ended['code']}, wanted 0")
    lines = _lines(ended["stderr"])
    told = [line["event"] for line in lines]
    for event in EVENTS:
        need(event in told, f"narration: no {event} event")
    ends = [told[0], told[-1]]
    need(ends == ["startup", "shutdown"], f"narration: from {ends[0]} to {ends[1]}")
    workers = {line["worker_id"] for line in lines}
    need(len(workers) == 1, f"narration: {len(workers)} worker ids in one engine's life")
    failed(exchange(observation, "cancelled"), "CANCELLED")
    _about(lines, "cancel", exchange(observation, "cancelled"))
    for job in exchanges(observation, "jobs"):
        stream, line = finished(job), _about(lines, "execute_end", job)
        assert stream.started is not None
        wanted = (stream.started["prompt_tokens"], len(stream.ids))
        got = (line["tokens_in"], line["tokens_out"])
        need(got == wanted, f"narration: {got} tokens in and out, the stream has {wanted}")
    status(exchange(observation, "refused"), 400)
    kinds = {line["error_kind"] for line in lines if line["event"] == "error"}
    need("INVALID_REQUEST" in kinds, f"narration: the refusal is not told, only {sorted(kinds)}")
    return passed(f"{len(lines)} lines tell {len(EVENTS)} kinds of event", lines=len(lines))


def _lines(stderr: str) -> Sequence[Mapping[str, Json]]:
    lines = [json_object(line.encode(), "narration") for line in stderr.splitlines() if line]
    need(bool(lines), "narration: not a line")
    for line in lines:
        fields(line, SHARED, "narration")
        need(line["event"] in EVENTS, f"narration: unknown event {line['event']!r}")
        fields(line, EVENTS[line["event"]], f"narration: {line['event']}")
        length = len(line["human"])
        need(length <= MAX_HUMAN_CHARS, f"narration: human has {length} characters")
    return lines


def _about(lines: Sequence[Mapping[str, Json]], event: str, seen: Exchange) -> Mapping[str, Json]:
    job_id = request(seen)["job_id"]
    found = [x for x in lines if x["event"] == event and x["job_id"] == job_id]
    need(len(found) == 1, f"narration: {len(found)} {event} lines about job {job_id!r}, wanted one")
    return found[0]


@judge
def redacted(observation: Observation, limits: Limits) -> Finding:
    """No planted word, whether sent, generated or a key, stands in anything that was printed."""
    words = fact(observation, "words")
    _planted(observation, words)
    exits = fact(observation, "exits")
    printed = [(end["stdout"] + end["stderr"]).lower() for end in exits]
    if not printed or not all('"shutdown"' in text for text in printed):
        raise Unseen("an engine's narration was not seen to its end")
    if printed[0].count('"execute_end"') < len(exchanges(observation, "completions")):
        raise Unseen("the narration does not tell the jobs that carried the canaries")
    keys = {f"key {number}": key for number, key in enumerate(fact(observation, "keys"), 1)}
    for name, word in {**words, **keys}.items():
        need(not any(word in text for text in printed), f"the canary {name!r} was printed")
    if keys:
        _keyed(observation)
    size = sum(map(len, printed))
    return passed(f"{len(words) + len(keys)} canaries, none in {size} characters", characters=size)


def _planted(observation: Observation, words: Mapping[str, str]) -> None:
    """Each word was really sent, and the model really said one."""
    sent = [
        f"{seen.path} {seen.request_headers} {seen.request_body.decode(errors='replace')}"
        for seen in exchanges(observation, "answers")
    ]
    for name in PLANTED:
        word = words.get(name, "")
        if len(word) < 8 or not any(word in text for text in sent):
            raise Unseen(f"the canary {name!r} was not planted")
    spoken = [
        (request(seen)["prompt"], finished(seen).text)
        for seen in exchanges(observation, "completions")
    ]
    if not any(word in asked and word in text for word in words.values() for asked, text in spoken):
        raise Unseen("no completion repeats the canary of its prompt")


def _keyed(observation: Observation) -> None:
    """The key was in use: refused without it, served with it."""
    for seen, wanted in zip(exchanges(observation, "keyed"), (401, 200, 401, 202), strict=True):
        status(seen, wanted)


JUDGES: Final[Mapping[str, Judge]] = {"G4-NARRATION": narrated, "G4-REDACTION": redacted}
