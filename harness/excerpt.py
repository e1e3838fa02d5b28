"""Short, bounded excerpts of evidence for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import BundleError, ProtocolError
from harness.observation import Exchange, Json
from harness.sse import decode_events
from harness.strict_json import dumps_line, loads
from harness.timings import is_event_stream, token_text
from harness.transcript import Recorded

TEXT_CHARS = 480
FACT_CHARS = 400
FACTS_SHOWN = 12
GROUPS_SHOWN = 6


@dataclass(frozen=True)
class Group:
    """The exchanges of one name: the first in short, and how many there are."""

    name: str
    exchanges: int
    line: str
    prompt: str
    text: str
    body: str


@dataclass(frozen=True)
class Excerpt:
    """An observation in short, and where the bundle holds it whole."""

    path: str
    attempt: int
    groups: tuple[Group, ...]
    groups_left_out: int
    facts: Mapping[str, str]
    facts_left_out: int


def shortened(text: str, limit_chars: int) -> str:
    """At most so many characters, and how many were left out."""
    if len(text) <= limit_chars:
        return text
    return f"{text[:limit_chars]} … ({len(text) - limit_chars} more characters)"


def _json_body(exchange: Exchange) -> Json:
    try:
        return loads(exchange.request_body, "request")
    except BundleError:
        return None


def prompt_of(exchange: Exchange) -> str:
    """What was asked: the prompt, or the messages, of a request that has one."""
    members = _json_body(exchange)
    if not isinstance(members, dict):
        return ""
    if isinstance(members.get("prompt"), str):
        return shortened(members["prompt"], TEXT_CHARS)
    if isinstance(members.get("messages"), list):
        return shortened(json.dumps(members["messages"], ensure_ascii=False), TEXT_CHARS)
    return ""


def streamed_text(exchange: Exchange) -> str:
    """The tokens' text of a stream, joined; empty for other responses."""
    if not is_event_stream(exchange):
        return ""
    try:
        events = decode_events(exchange.chunks, strict=False)
    except ProtocolError:
        return ""
    return shortened("".join(token_text(timed.event) or "" for timed in events), TEXT_CHARS)


def _milliseconds(exchange: Exchange) -> str:
    if exchange.closed_ns is None:
        return "not closed"
    return f"{(exchange.closed_ns - exchange.sent_ns) / 1e6:.1f} ms"


def _group(name: str, exchanges: tuple[Exchange, ...]) -> Group:
    if not exchanges:
        return Group(name, 0, "no exchange", "", "", "")
    first = exchanges[0]
    status = first.status if first.status is not None else f"no response ({first.error})"
    text = streamed_text(first)
    body = "" if text else shortened(first.body.decode("utf-8", "backslashreplace"), TEXT_CHARS)
    line = (
        f"{first.method} {first.path} → {status}, {len(first.body)} bytes, {_milliseconds(first)}"
    )
    return Group(name, len(exchanges), line, prompt_of(first), text, body)


def excerpt_of(recorded: Recorded) -> Excerpt:
    """The excerpt of one observation."""
    observation = recorded.observation
    names = sorted(observation.exchanges)
    facts = sorted(observation.facts)
    return Excerpt(
        path=recorded.path,
        attempt=observation.attempt,
        groups=tuple(_group(name, observation.exchanges[name]) for name in names[:GROUPS_SHOWN]),
        groups_left_out=max(0, len(names) - GROUPS_SHOWN),
        facts={
            name: shortened(dumps_line(observation.facts[name]).decode(), FACT_CHARS)
            for name in facts[:FACTS_SHOWN]
        },
        facts_left_out=max(0, len(facts) - FACTS_SHOWN),
    )
