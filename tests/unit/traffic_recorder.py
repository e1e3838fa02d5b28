"""The engine's side of the wire, without an engine: keeps every request, answers with plain words.

The clients, suites and challenges are the real ones, so what is kept is byte for byte what an
engine would have to tell them apart by.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.clients.native import NativeClient
from harness.observation import Exchange
from harness.transport import Endpoint
from tests.unit.recorded import events, exchange, in_one_piece, stream

TEXT = "the story of a man and his dog, who was in the house that he had. It was to be"
WORDS = TEXT.split()
COMPLETIONS = ("/execute", "/v1/completions")


@dataclass(frozen=True)
class Sent:
    """One request for a completion; `at_once` with how many others."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: Mapping[str, Any]
    at_once: int = 1


def said(body: Mapping[str, Any]) -> list[str]:
    """As many words as were asked for, drawn from a hash of the request, up to a stop sequence."""
    asked = json.dumps([body.get(n) for n in ("prompt", "prompt_ids", "messages", "temperature")])
    digest = hashlib.sha256(asked.encode()).digest() * 8
    words = [f"{WORDS[byte % len(WORDS)]} " for byte in digest[: body["max_tokens"]]]
    for stop in body.get("stop", ()):
        while stop in "".join(words):
            words.pop()
    return words


@dataclass
class Wire:
    """In the place of a client's HTTP."""

    sent: list[Sent] = field(default_factory=list)
    open_now: int = 0

    def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Any = (), limits: Any = None
    ) -> Exchange:
        fields = json.loads(body or b"{}")
        if path in COMPLETIONS:
            self.sent.append(Sent(path, tuple(headers), fields))
        return self.answer(path, fields)

    def open(
        self, method: str, path: str, body: bytes = b"", headers: Any = (), on_event: Any = None
    ) -> "Live":
        self.open_now += 1
        fields = json.loads(body)
        self.sent.append(Sent(path, tuple(headers), fields, self.open_now))
        return Live(self, self.answer(path, fields))

    def answer(self, path: str, body: Mapping[str, Any]) -> Exchange:
        if path == "/execute":
            words = said(body)
            reason = "length" if len(words) % 4 else "stop"
            return stream(events(words, dict(body), reason=reason), dict(body))
        if path == "/v1/completions":
            words = said(body)
            return in_one_piece("".join(words), len(words), **body)
        tables: dict[str, Any] = {
            "/tokenize": {"ids": [len(word) for word in str(body.get("text")).split()]},
            "/detokenize": {"text": "", "dropped_bytes": 0},
            "/health": {"model": "m"},
        }
        return exchange(path, tables.get(path, {}), sent=dict(body) or None)


@dataclass
class Live:
    """A running exchange, over when it is asked for."""

    wire: Wire
    seen: Exchange

    def finish(self, timeout_s: float) -> Exchange:
        self.wire.open_now -= 1
        return self.seen

    def wait_until(self, wanted: Callable[..., bool], timeout_s: float) -> None: ...

    def disconnect(self) -> int:
        return 0


@dataclass
class Engine:
    """What a suite's test has of a running engine."""

    wire: Wire = field(default_factory=Wire)
    model_path: Path = Path(__file__)
    model_sha256: str = "0" * 64

    def __post_init__(self) -> None:
        self.client = NativeClient(Endpoint("http://engine"))
        self.client.http = self.wire  # type: ignore[assignment]

    def process_facts(self) -> dict[str, Any]:
        return {"cpu_s": 0.0, "rss_bytes": 1}

    def stop(self) -> None: ...
