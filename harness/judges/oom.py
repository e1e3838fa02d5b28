"""Judges of out of memory: refused at start, survived in the midst of a stream."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

from harness.judges.http import HEALTH_FIELDS, healthy, narration
from harness.judges.rule import (
    Broken,
    Unseen,
    body,
    by_test,
    exchange,
    exchanges,
    fact,
    fields,
    judge,
    need,
    passed,
    where,
)
from harness.judges.stream import Stream, failed, identical, read_stream
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation

CODE: Final = "VRAM_OOM"
MIN_EXHAUSTED: Final = 2
_BYTES: Final = re.compile(r"(\d+) bytes required, (\d+) bytes available")


def _over_the_limit(observation: Observation, limits: Limits) -> Finding:
    """The limit that was given lies between what is available and what is required."""
    required, available = _refused(observation)
    bound = fact(observation, "limit_bytes")
    need(available <= bound < required, f"{required} required, {available} available of {bound}")
    return passed(f"{required} bytes required, {available} available", required_bytes=required)


def _over_the_rest(observation: Observation, limits: Limits) -> Finding:
    """Another process held the device's memory: what it left is all that can be available."""
    required, available = _refused(observation)
    held, left = fact(observation, "held_by_another"), fact(observation, "left_bytes")
    if held <= left:
        raise Unseen(f"another process held {held} bytes and left {left}: the device was not full")
    need(available <= left, f"{available} bytes available, {left} were left")
    need(available < required, f"{required} bytes required, {available} available: no lack")
    return passed(f"{required} bytes required, {available} available", required_bytes=required)


def _refused(observation: Observation) -> tuple[int, int]:
    """Exit code 1 and one line: the code, bytes required and available, the device, the model."""
    ended = fact(observation, "exit")
    need(not ended["timed_out"], f"it did not end within {ended['duration_s']:.0f} s")
    need(ended["code"] == 1, f"exit code {ended['code']}, wanted 1")
    need(not ended["oom_killed"], "the kernel killed it: the limit was not kept")
    said = ended["stdout"] + ended["stderr"]
    need("Traceback (most recent call last)" not in said, "it ended with a traceback")
    lines = narration(ended["stderr"].splitlines())
    need(not any(x.get("event") == "ready" for x in lines), "it was ready with too little memory")
    errors = [x for x in lines if x.get("event") == "error"]
    need(len(errors) == 1, f"{len(errors)} error events, wanted one")
    told = errors[0]
    shape = {"code": "text", "message": "text", "device": "text", "model_path": "text"}
    fields(told, {**shape, "required_bytes": "count", "available_bytes": "count"}, "error event")
    need(told["code"] == "INSUFFICIENT_VRAM", f"code {told['code']}, wanted INSUFFICIENT_VRAM")
    model = PurePath(told["model_path"]).name
    need(model == fact(observation, "model_name"), f"the error names the model {model!r}")
    size, required = fact(observation, "model_bytes"), told["required_bytes"]
    need(0.9 * size <= required, f"{required} bytes required for a file of {size}")
    return required, told["available_bytes"]


@judge
def kv(observation: Observation, limits: Limits) -> Finding:
    """Streams end with VRAM_OOM once the budget is used; each time the whole budget is back."""
    idle = body(exchange(observation, "idle"))
    counts = [len(stream.tokens) for stream in _exhausted(observation)]
    need(min(counts) > 0, "a stream was out of memory before its first token")
    need(
        len(set(counts)) == 1,
        f"the same prompt was out of memory after {counts} tokens: part of the budget stayed taken",
    )
    sick = body(exchange(observation, "sick"))
    for table in (idle, sick):
        fields(table, {"kv_bytes": "count"}, "/health")
    held, free = sick["kv_bytes"], idle["kv_bytes"]
    need(held == free, f"{held} bytes of KV are held after the exhaustion, {free} before")
    return passed(f"{CODE} after {counts[0]} tokens, {len(counts)} times", tokens=counts[0])


@judge
def message(observation: Observation, limits: Limits) -> Finding:
    """The message names the bytes required and available, and they are possible."""
    bound = fact(observation, "kv_limit_bytes")
    for stream in _exhausted(observation):
        said = str(_error(stream)["message"])
        found = _BYTES.search(said)
        if found is None:
            raise Broken(f"the message names no bytes required and available: {said!r}")
        required, available = map(int, found.groups())
        need(required > available, f"{required} bytes required, {available} available: no lack")
        need(available <= bound, f"{available} bytes available of a budget of {bound}")
    return passed(f"{required} bytes required, {available} available, of a budget of {bound}")


@judge
def alive(observation: Observation, limits: Limits) -> Finding:
    """The process after the exhaustion is the one before."""
    _exhausted(observation)
    first, last = fact(observation, "at_first"), fact(observation, "at_last")
    for name in ("pid", "create_time"):
        if first.get(name) is None:
            raise Unseen(f"the process's {name} was not seen before the exhaustion")
        need(last.get(name) == first[name], f"{name} was {first[name]}, is {last.get(name)}")
    uptimes = [body(exchange(observation, n))["uptime_seconds"] for n in ("idle", "recovered")]
    need(uptimes[0] < uptimes[1], f"uptime went from {uptimes[0]} s to {uptimes[1]} s")
    return passed(f"process {first['pid']} lives on")


@judge
def recovers(observation: Observation, limits: Limits) -> Finding:
    """The same request gives the same tokens before and after."""
    runs = [exchange(observation, name) for name in ("before", "after", "second")]
    closed = [seen.closed_ns or 0 for seen in _exhausting(observation)]
    need(
        runs[0].sent_ns < min(closed) and max(closed) < runs[1].sent_ns,
        "the requests do not stand around the exhaustion",
    )
    ids = identical(runs, "before and after the exhaustion")
    need(bool(ids), "the completion is empty")
    return passed(f"the same {len(ids)} tokens before and after", tokens=ids)


@judge
def event(observation: Observation, limits: Limits) -> Finding:
    """The stream begins as ever and ends with one error event of the documented shape."""
    for stream in _exhausted(observation):
        error = _error(stream)
        need(stream.started is not None, "no started event stands before the error")
        need(stream.metrics is None, "metrics stand beside the error")
        need(error["retriable"] is True, f"{CODE} must be retriable")
        need("\n" not in str(error["message"]), "the message is more than one line")
        need(set(error) == {"code", "message", "retriable"}, f"error has {sorted(error)}")
    return passed(f"one error event {CODE}, in place of metrics and end")


@judge
def health(observation: Observation, limits: Limits) -> Finding:
    """Healthy, unhealthy with the error told, and healthy again after a job succeeded."""
    sha256 = fact(observation, "model_sha256")
    _exhausted(observation)
    healthy(exchange(observation, "idle"), sha256)
    sick = body(exchange(observation, "sick"))
    fields(sick, {**HEALTH_FIELDS, "last_error": "object"}, "/health")
    need(sick["status"] == "unhealthy", f"status {sick['status']!r} after {CODE}")
    need(sick["last_error"].get("code") == CODE, f"last_error is {sick['last_error']!r}")
    healthy(exchange(observation, "recovered"), sha256)
    return passed("healthy, unhealthy, healthy")


def _exhausting(observation: Observation) -> Sequence[Exchange]:
    """The exchanges in which the budget ran out; a text that ended by itself is none."""
    long = exchanges(observation, "long")
    return [seen for seen in long if read_stream(seen).error is not None]


def _exhausted(observation: Observation) -> list[Stream]:
    streams = [failed(seen, CODE) for seen in _exhausting(observation)]
    counted = len(exchanges(observation, "long"))
    need(
        len(streams) >= MIN_EXHAUSTED,
        f"{where(exchanges(observation, 'long')[0])}: {len(streams)} of {counted} streams "
        f"were out of memory, wanted {MIN_EXHAUSTED}: the budget is not kept",
    )
    return streams


def _error(stream: Stream) -> Mapping[str, Json]:
    assert stream.error is not None
    return stream.error


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-OOM-LOAD": by_test(
        {"test_model_does_not_fit": _over_the_limit, "test_device_is_full": _over_the_rest}
    ),
    "G4-OOM-KV": kv,
    "G4-OOM-MESSAGE": message,
    "G4-OOM-ALIVE": alive,
    "G4-OOM-RECOVERS": recovers,
    "G4-OOM-EVENT": event,
    "G4-OOM-HEALTH": health,
}
