"""The event stream of /execute, decoded anew from the recorded bytes, by the engine's contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.judges.rule import body, fields, header, json_object, need, request, where
from harness.observation import Exchange, Json
from harness.sse import TimedEvent, decode_events

MEDIA_TYPE: Final = "text/event-stream"
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


@dataclass(frozen=True)
class TokenEvent:
    """One token event; `arrival_ns` is when its last byte arrived."""

    text: str
    token_id: int
    arrival_ns: int
    raw: Mapping[str, Json]


@dataclass(frozen=True)
class Stream:
    """A whole stream; exactly one of `end` and `error` is there, unless the client left first."""

    started: Mapping[str, Json] | None
    tokens: tuple[TokenEvent, ...]
    metrics: Mapping[str, Json] | None
    end: Mapping[str, Json] | None
    error: Mapping[str, Json] | None
    terminal_ns: int | None

    @property
    def text(self) -> str:
        """The completion."""
        return "".join(token.text for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        """The completion's token ids."""
        return [token.token_id for token in self.tokens]


def read_stream(seen: Exchange, *, unfinished: bool = False) -> Stream:
    """Decode and check a recorded stream; Broken or ProtocolError name what the contract forbids.

    `unfinished` allows a stream that the client left before its terminal event.
    """
    need(seen.status == 200, f"{where(seen)}: wanted status 200, got {seen.status} {seen.error}")
    need(seen.error is None, f"{where(seen)}: the stream broke off: {seen.error}")
    kind = (header(seen, "Content-Type") or "").partition(";")[0].strip().lower()
    need(kind == MEDIA_TYPE, f"{where(seen)}: wanted Content-Type {MEDIA_TYPE}, got {kind!r}")
    events = _events(seen, unfinished=unfinished)
    _check_order([timed.event.type for timed in events], unfinished=unfinished)
    tables = [(timed, _table(timed)) for timed in events]
    stream = _assemble(tables)
    _check_counts(stream)
    return stream


def finished(seen: Exchange, *, reason: str | None = None) -> Stream:
    """A stream that ended well, for this reason if one is given."""
    stream = read_stream(seen)
    need(stream.end is not None, f"{where(seen)}: the job failed: {stream.error}")
    assert stream.end is not None
    got = stream.end["finish_reason"]
    need(reason in (None, got), f"{where(seen)}: wanted finish_reason {reason!r}, got {got!r}")
    return stream


def failed(seen: Exchange, code: str) -> Stream:
    """A stream that ended with this error code."""
    stream = read_stream(seen)
    need(stream.error is not None, f"{where(seen)}: wanted error {code}, the job ended well")
    assert stream.error is not None
    got = stream.error["code"]
    need(got == code, f"{where(seen)}: wanted error {code}, got {got}: {stream.error['message']}")
    return stream


def completion(seen: Exchange) -> tuple[str, list[int]]:
    """Text and token ids of a stream that ended well."""
    stream = finished(seen)
    return stream.text, stream.ids


def identical(seen: Sequence[Exchange], what: str) -> list[int]:
    """The streams of one and the same request carry the same tokens; returns their ids.

    The requests must be equal in all but job_id; Broken names the first stream that differs.
    """
    sent = [{k: v for k, v in request(one).items() if k != "job_id"} for one in seen]
    need(all(one == sent[0] for one in sent), f"{what}: the requests themselves differ")
    jobs = [request(one).get("job_id") for one in seen]
    need(len(set(jobs)) == len(jobs), f"{what}: a job_id stands twice")
    first = completion(seen[0])
    for number, one in enumerate(seen[1:], start=2):
        text, ids = completion(one)
        at = next((i for i, (a, b) in enumerate(zip(first[1], ids, strict=False)) if a != b), None)
        need(
            (text, ids) == first,
            f"{what}: run {number} differs from run 1 at token {at if at is not None else 'count'}",
        )
    return first[1]


def error_body(seen: Exchange, wanted_status: int, code: str) -> Mapping[str, Json]:
    """An error answer before any stream: this status, this code, the documented shape."""
    table = body(seen, wanted_status)
    fields(table, {"code": "text", "message": "text", "retriable": "boolean"}, where(seen))
    need(table["code"] == code, f"{where(seen)}: wanted code {code}, got {table['code']!r}")
    need("\n" not in str(table["message"]), f"{where(seen)}: the message is more than one line")
    return table


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
