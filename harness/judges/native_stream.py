"""The event stream of /execute, decoded anew from the recorded bytes, by the engine's contract."""

from collections.abc import Mapping
from typing import Final

from harness.judges.completion import Stream, TokenEvent
from harness.judges.rule import fields, json_object, need
from harness.observation import Exchange, Json
from harness.sse import TimedEvent, decode_events

FINISH_REASONS: Final = ("stop", "length", "stop_sequence")

SHAPES: Final[Mapping[str, Mapping[str, str]]] = {
    "started": {
        "job_id": "text",
        "model": "text",
        "started_at": "text",
        "seed": "count",
        "prompt_tokens": "count",
        "cached_tokens": "count",
    },
    "token": {"t": "string", "i": "count", "id": "count"},
    "metrics": {
        "prefill_ms": "number",
        "decode_ms": "number",
        "tokens_out": "count",
        "kv_cache_bytes": "count",
    },
    "end": {
        "tokens_out": "count",
        "decode_time_ms": "number",
        "finish_reason": "text",
        "dropped_bytes": "count",
    },
    "error": {"code": "text", "message": "text", "retriable": "boolean"},
}
_ORDER: Final = {"started": 0, "token": 1, "metrics": 2, "end": 3, "error": 3}
_AT_MOST_ONCE: Final = ("started", "metrics", "end", "error")


def read_events(seen: Exchange, *, unfinished: bool = False) -> Stream:
    """The native events; `unfinished` allows a stream that its client left."""
    events = _events(seen, unfinished=unfinished)
    _check_order([timed.event.type for timed in events], unfinished=unfinished)
    stream = _assemble([(timed, _table(timed)) for timed in events])
    _check_counts(stream)
    return stream


def _events(seen: Exchange, *, unfinished: bool) -> list[TimedEvent]:
    if not unfinished:
        return decode_events(seen.chunks)
    # A client that left has cut the stream anywhere: only whole events count.
    last = max(seen.body.rfind(b"\n\n"), seen.body.rfind(b"\r\n\r\n") + 2)
    kept, chunks = last + 2, []
    for chunk in seen.chunks:
        content, kept = chunk.content[: max(kept, 0)], kept - len(chunk.content)
        chunks.append(type(chunk)(chunk.arrival_ns, content))
    return decode_events(chunks)


def _check_order(types: list[str], *, unfinished: bool) -> None:
    strange = [type_ for type_ in types if type_ not in SHAPES]
    need(not strange, f"stream: unknown event {strange[:1]}")
    for type_ in _AT_MOST_ONCE:
        need(types.count(type_) <= 1, f"stream: {types.count(type_)} {type_} events, wanted one")
    ranks = [_ORDER[type_] for type_ in types]
    need(ranks == sorted(ranks), f"stream: events out of order: {' '.join(_runs(types))}")
    terminals = types.count("end") + types.count("error")
    need(terminals <= 1, f"stream: {terminals} terminal events, wanted one")
    need(unfinished or terminals == 1, "stream: no terminal event, wanted end or error")
    opened = types[:1] in (["started"], ["error"]) or (unfinished and not types)
    need(opened, f"stream: wanted started first, got {types[:1]}")


def _table(timed: TimedEvent) -> Mapping[str, Json]:
    place = f"event {timed.event.type}"
    table = json_object(timed.event.data.encode("utf-8", errors="surrogatepass"), place)
    fields(table, SHAPES[timed.event.type], place)
    return table


def _assemble(events: list[tuple[TimedEvent, Mapping[str, Json]]]) -> Stream:
    single = {timed.event.type: table for timed, table in events if timed.event.type != "token"}
    tokens = tuple(
        TokenEvent(table["t"], table["id"], timed.arrival_ns, table)
        for timed, table in events
        if timed.event.type == "token"
    )
    for index, token in enumerate(tokens):
        need(token.raw["i"] == index, f"stream: token {index} has i = {token.raw['i']}")
    closed = [timed.arrival_ns for timed, _ in events if timed.event.type in ("end", "error")]
    return Stream(
        started=single.get("started"),
        tokens=tokens,
        metrics=single.get("metrics"),
        end=single.get("end"),
        error=single.get("error"),
        terminal_ns=closed[0] if closed else None,
    )


def _check_counts(stream: Stream) -> None:
    seen = len(stream.tokens)
    for place, table in (("metrics", stream.metrics), ("end", stream.end)):
        if table is not None:
            got = table["tokens_out"]
            need(got == seen, f"stream: {place} says {got} tokens_out, {seen} token events came")
    if stream.end is not None:
        reason = stream.end["finish_reason"]
        need(reason in FINISH_REASONS, f"stream: unknown finish_reason {reason!r}")


def _runs(types: list[str]) -> list[str]:
    return [type_ for index, type_ in enumerate(types) if index == 0 or types[index - 1] != type_][
        :20
    ]
