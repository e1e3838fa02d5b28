"""Server-sent events: bytes in, events out, no I/O (WHATWG HTML, section 9.2.6)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.errors import ProtocolError
from harness.observation import Chunk

MAX_LINE_BYTES: Final = 1 << 20
MAX_EVENT_BYTES: Final = 4 << 20

_BOM: Final = b"\xef\xbb\xbf"
_FIELDS: Final = frozenset({"event", "data", "id", "retry"})


@dataclass(frozen=True)
class Event:
    """One dispatched event; `type` is "message" where the stream names none."""

    data: str
    type: str = "message"
    last_event_id: str = ""


@dataclass(frozen=True)
class TimedEvent:
    """An event and when its last byte arrived, in monotonic nanoseconds."""

    arrival_ns: int
    event: Event


class EventDecoder:
    """Decodes one event stream, pushed in pieces of any size.

    A line or an event beyond its bound raises ProtocolError in either mode. `strict` also refuses
    what an engine must never send: invalid UTF-8, NUL, unknown fields, a stream that ends inside
    an event. Without it such bytes are treated as the specification says.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        max_line_bytes: int = MAX_LINE_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        self._strict = strict
        self._max_line_bytes = max_line_bytes
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._lines_seen = 0
        self._after_cr = False
        self._data: list[str] = []
        self._event_bytes = 0
        self._type = ""
        self._last_id = ""
        self.retry_ms: int | None = None

    def push(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        events: list[Event] = []
        start = 0
        while start < len(piece):
            if self._after_cr:
                self._after_cr = False
                if piece[start] == 0x0A:
                    start += 1
                    continue
            end = _line_end(piece, start)
            self._extend(piece[start : len(piece) if end < 0 else end])
            if end < 0:
                break
            self._after_cr = piece[end] == 0x0D
            start = end + 1
            self._take_line(events)
        return events

    def close(self) -> None:
        """End of the stream: an unfinished event is dropped, in strict mode refused."""
        unfinished = bool(self._line or self._data or self._type)
        self._line.clear()
        self._data, self._type, self._event_bytes = [], "", 0
        if unfinished and self._strict:
            raise ProtocolError("event stream: it ends inside an event; wanted a blank line after")

    def _extend(self, part: bytes) -> None:
        self._line += part
        if len(self._line) > self._max_line_bytes:
            raise ProtocolError(
                f"event stream, line {self._lines_seen + 1}: "
                f"wanted at most {self._max_line_bytes} bytes, got {len(self._line)} and more"
            )

    def _take_line(self, events: list[Event]) -> None:
        raw = bytes(self._line)
        self._line.clear()
        self._lines_seen += 1
        if self._lines_seen == 1:
            raw = raw.removeprefix(_BOM)
        if not raw:
            self._dispatch(events)
            return
        self._event_bytes += len(raw)
        if self._event_bytes > self._max_event_bytes:
            raise ProtocolError(
                f"event stream, line {self._lines_seen}: an event of more than "
                f"{self._max_event_bytes} bytes"
            )
        self._field(self._text(raw))

    def _text(self, raw: bytes) -> str:
        if not self._strict:
            return raw.decode("utf-8", errors="replace")
        if b"\0" in raw:
            raise ProtocolError(f"event stream, line {self._lines_seen}: contains NUL")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError(
                f"event stream, line {self._lines_seen}: not UTF-8 at byte {error.start}"
            ) from None

    def _field(self, line: str) -> None:
        if line.startswith(":"):
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._last_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value[:18])
        elif self._strict and name not in _FIELDS:
            raise ProtocolError(
                f"event stream, line {self._lines_seen}: unknown field {name[:40]!r}"
            )

    def _dispatch(self, events: list[Event]) -> None:
        lines, type_ = self._data, self._type
        self._data, self._type, self._event_bytes = [], "", 0
        if lines:
            events.append(Event("\n".join(lines), type_ or "message", self._last_id))
        elif type_ and self._strict:
            raise ProtocolError(f"event stream, line {self._lines_seen}: {type_!r} has no data")


def decode_events(chunks: Iterable[Chunk], *, strict: bool = True) -> list[TimedEvent]:
    """The events of a recorded body, each with the arrival time of the chunk that completed it."""
    decoder = EventDecoder(strict=strict)
    events = [
        TimedEvent(chunk.arrival_ns, event)
        for chunk in chunks
        for event in decoder.push(chunk.content)
    ]
    decoder.close()
    return events


def _line_end(piece: bytes, start: int) -> int:
    ends = [end for end in (piece.find(b"\n", start), piece.find(b"\r", start)) if end >= 0]
    return min(ends, default=-1)
