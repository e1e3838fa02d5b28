"""Recorded completions, decoded anew from their bytes: one way to read them, whatever the API."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Final

from harness.errors import ProtocolError
from harness.judges.completion import UNKNOWN_ID, Dialect, Stream, TokenEvent, Whole
from harness.judges.native_stream import read_events
from harness.judges.openai_stream import CHAT, COMPLETIONS
from harness.judges.rule import Broken, Unseen, body, fields, header, need, request, where
from harness.observation import Exchange, Json

__all__ = ["Stream", "TokenEvent", "read_stream"]

MEDIA_TYPE: Final = "text/event-stream"
NATIVE_PATH: Final = "/execute"
WHOLE: Final = "whole"
"""The kind of request that is answered in one piece."""

DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions": CHAT,
}
NOTHING: Final = Stream(None, (), None, None, None, None)


def is_native(seen: Exchange) -> bool:
    """Whether the request went to the engine's contract's own route."""
    return seen.path == NATIVE_PATH


def dialect(seen: Exchange) -> Dialect:
    """What reads this exchange; Unseen if no installed client speaks its route."""
    found = _dialect(seen.path.partition("?")[0])
    if found is None:
        raise Unseen(f"{where(seen)}: no installed client reads this route")
    return found


@lru_cache
def _dialect(path: str) -> Dialect | None:
    if path in DIALECTS:
        return DIALECTS[path]
    clients = (entry.load() for entry in entry_points(group="haikugate.engines"))
    tables = (getattr(client, "dialects", {}) for client in clients)
    return next((table[path] for table in tables if path in table), None)


def asked(seen: Exchange) -> Mapping[str, Any]:
    """The request as fields of the engine's contract, whatever API carried it."""
    return request(seen) if is_native(seen) else dialect(seen).asked(seen)


def read_stream(seen: Exchange, *, unfinished: bool = False) -> Stream:
    """Decode and check a recorded stream; Broken or ProtocolError name what the API forbids.

    `unfinished` allows a native stream that the client left before its terminal event.
    """
    need(seen.status == 200, f"{where(seen)}: wanted status 200, got {seen.status} {seen.error}")
    need(seen.error is None, f"{where(seen)}: the stream broke off: {seen.error}")
    kind = (header(seen, "Content-Type") or "").partition(";")[0].strip().lower()
    need(kind == MEDIA_TYPE, f"{where(seen)}: wanted Content-Type {MEDIA_TYPE}, got {kind!r}")
    if is_native(seen):
        return read_events(seen, unfinished=unfinished)
    return dialect(seen).stream(seen)


def read_or_nothing(seen: Exchange) -> Stream:
    """A stream for the suites to ask on with; an empty one where judges will find it broken."""
    try:
        return read_stream(seen)
    except (Broken, ProtocolError, Unseen):
        return NOTHING


def read_whole(seen: Exchange) -> Whole:
    """An answer in one piece."""
    return dialect(seen).whole(seen)


def answered(seen: Exchange, kind: str = "") -> Stream:
    """A request's answer that ended well; of kind `whole` it came in one piece, of no token ids."""
    if kind != WHOLE:
        return finished(seen)
    answer = read_whole(seen)
    piece = TokenEvent(answer.text, UNKNOWN_ID, seen.closed_ns or 0, {"id": UNKNOWN_ID})
    counted = {"completion_tokens": answer.tokens_out}
    return replace(NOTHING, tokens=(piece,), usage=counted)


def answer_or_nothing(seen: Exchange, kind: str = "") -> Stream:
    """What was answered, for the suites to compare; nothing where judges will find it broken."""
    try:
        return answered(seen, kind)
    except (Broken, ProtocolError, Unseen):
        return NOTHING


def finished(seen: Exchange, *, reason: str | None = None) -> Stream:
    """A stream that ended well, for this reason if one is given.

    Another API's `stop` may stand for a stop sequence, which it does not tell from an end of text.
    """
    stream = read_stream(seen)
    need(stream.end is not None, f"{where(seen)}: the job failed: {stream.error}")
    assert stream.end is not None
    got = stream.end["finish_reason"]
    told = "stop" if reason == "stop_sequence" and not is_native(seen) else reason
    need(told in (None, got), f"{where(seen)}: wanted finish_reason {told!r}, got {got!r}")
    return stream


def failed(seen: Exchange, code: str) -> Stream:
    """A stream that ended with this error code."""
    stream = read_stream(seen)
    need(stream.error is not None, f"{where(seen)}: wanted error {code}, the job ended well")
    assert stream.error is not None
    got = stream.error["code"]
    need(got == code, f"{where(seen)}: wanted error {code}, got {got}: {stream.error['message']}")
    return stream


def parts_at(one: Stream, other: Stream) -> int | None:
    """Where two completions part: the token, or the character where one API gives no ids."""
    both = one.has_ids and other.has_ids
    a, b = (one.ids, other.ids) if both else (list(one.text), list(other.text))
    for index, (ours, theirs) in enumerate(zip(a, b, strict=False)):
        if ours != theirs:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def same_requests(seen: Sequence[Exchange], what: str, *ignored: str) -> Mapping[str, Any]:
    """The requests are equal in all but job_id and these fields; returns what they share."""
    names = {"job_id", *ignored}
    sent = [{k: v for k, v in asked(one).items() if k not in names} for one in seen]
    need(all(one == sent[0] for one in sent), f"{what}: the requests themselves differ")
    jobs = [asked(one).get("job_id", one.sent_ns) for one in seen]
    need(len(set(jobs)) == len(jobs), f"{what}: a job_id stands twice")
    return sent[0]


def identical(seen: Sequence[Exchange], what: str) -> list[int] | list[str]:
    """The streams of one and the same request say the same; returns what.

    The requests must be equal in all but job_id; Broken names the first stream that differs.
    """
    same_requests(seen, what)
    first = finished(seen[0])
    for number, one in enumerate(seen[1:], start=2):
        stream = finished(one)
        at = parts_at(first, stream)
        same = at is None and (first.text, first.tokens_out) == (stream.text, stream.tokens_out)
        place = "count" if at is None else at
        need(same, f"{what}: run {number} differs from run 1 at token {place}")
    return first.said


def error_body(seen: Exchange, wanted_status: int, code: str) -> Mapping[str, Json]:
    """An error answer before any stream: this status, this code, the documented shape."""
    table = body(seen, wanted_status)
    fields(table, {"code": "text", "message": "text", "retriable": "boolean"}, where(seen))
    need(table["code"] == code, f"{where(seen)}: wanted code {code}, got {table['code']!r}")
    need("\n" not in str(table["message"]), f"{where(seen)}: the message is more than one line")
    return table
