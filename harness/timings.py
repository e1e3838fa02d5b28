"""timings.json: latencies of every recorded stream, derived from transcripts alone.

`verify` derives it again. Streams are all those of the run, whatever their prompt and load, so the
summary describes the run; what a check judges is in its own observations.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from harness.bundle_reader import OBSERVATION_SUFFIX, BundleReader
from harness.errors import BundleError, ProtocolError
from harness.metrics import RequestTiming, decode_tokens_per_s, percentiles
from harness.observation import Exchange, Json
from harness.sse import Event, decode_events
from harness.strict_json import loads
from harness.transcript import decode_exchanges

FORMULAS = {
    "ttft_ms": "arrival of the first non-empty token − sending of the request",
    "itl_ms": "gap between the arrivals of two consecutive non-empty tokens",
    "tpot_ms": "(last arrival − first arrival) / (non-empty tokens − 1), for each stream",
    "decode_tokens_per_s": "1000 / tpot_ms",
}


@dataclass(frozen=True)
class StreamTiming:
    """One event stream: its file, its place in it, and what its raw bytes say."""

    path: str
    index: int
    valid_utf8: bool
    events: int
    tokens: int
    ttft_ms: float | None
    tpot_ms: float | None
    decode_tokens_per_s: float | None
    itl_ms: tuple[float, ...]


def token_text(event: Event) -> str | None:
    """The text a token event carries, in the native or the OpenAI dialect, else None."""
    if event.type not in ("token", "message"):
        return None
    try:
        members = loads(event.data.encode("utf-8", "replace"), "event")
    except BundleError:
        return None
    if not isinstance(members, dict):
        return None
    text = members.get("t") if event.type == "token" else _openai_text(members)
    return text if isinstance(text, str) else None


def _openai_text(members: dict[str, Any]) -> Json:
    choices = members.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    delta = choices[0].get("delta")
    return delta.get("content") if isinstance(delta, dict) else choices[0].get("text")


def is_event_stream(exchange: Exchange) -> bool:
    """Whether the response says that it is server-sent events."""
    kinds = [value for name, value in exchange.response_headers if name.lower() == "content-type"]
    return any(kind.lower().startswith("text/event-stream") for kind in kinds)


def _valid_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def stream_timing(path: str, index: int, exchange: Exchange) -> StreamTiming:
    """What one recorded stream says; one with a line or event beyond bounds has no events."""
    try:
        events = decode_events(exchange.chunks, strict=False)
    except ProtocolError:
        events = []
    arrivals = tuple(timed.arrival_ns for timed in events if token_text(timed.event))
    timing = RequestTiming(exchange.sent_ns, arrivals)
    return StreamTiming(
        path=path,
        index=index,
        valid_utf8=_valid_utf8(exchange.body),
        events=len(events),
        tokens=len(arrivals),
        ttft_ms=timing.ttft_ms,
        tpot_ms=timing.tpot_ms,
        decode_tokens_per_s=decode_tokens_per_s(timing),
        itl_ms=timing.itl_ms,
    )


def exchange_files(bundle: BundleReader) -> Iterator[tuple[str, tuple[Exchange, ...]]]:
    """Every transcript file with its exchanges, each once however many checks share it."""
    for path in sorted(bundle.manifest.files):
        is_transcript = path.startswith("transcripts/") and path.endswith(".ndjson")
        if is_transcript and not path.endswith(OBSERVATION_SUFFIX):
            yield path, decode_exchanges(bundle.read(path), path)


def _summary(samples: Iterable[float | None]) -> Json:
    known = [sample for sample in samples if sample is not None]
    found = percentiles(known)
    return {"n": len(known), **(asdict(found) if found else {})}


def derive_timings(bundle: BundleReader) -> dict[str, Json]:
    """The content of timings.json."""
    streams = [
        stream_timing(path, index, exchange)
        for path, exchanges in exchange_files(bundle)
        for index, exchange in enumerate(exchanges)
        if is_event_stream(exchange)
    ]
    return {
        "formulas": FORMULAS,
        "summary": {
            "ttft_ms": _summary(stream.ttft_ms for stream in streams),
            "itl_ms": _summary(gap for stream in streams for gap in stream.itl_ms),
            "tpot_ms": _summary(stream.tpot_ms for stream in streams),
            "decode_tokens_per_s": _summary(stream.decode_tokens_per_s for stream in streams),
        },
        "streams": [asdict(stream) | {"itl_ms": list(stream.itl_ms)} for stream in streams],
    }
