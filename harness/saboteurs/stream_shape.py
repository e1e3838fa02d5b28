"""Saboteurs that forge the shape of the stream: pace, chunks, order, counts."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from harness.saboteurs.proxy import Body, Events, Saboteur, ServerEvent


def end_event(tokens_out: int, finish_reason: str) -> ServerEvent:
    """A terminal `end` event."""
    return ServerEvent(
        "end",
        {
            "tokens_out": tokens_out,
            "decode_time_ms": 1.0,
            "finish_reason": finish_reason,
            "dropped_bytes": 0,
        },
    )


def changed(event: ServerEvent, **fields: Any) -> ServerEvent:
    """The event with some fields of its JSON replaced."""
    return replace(event, body={**event.body, **fields})


def recounted(event: ServerEvent, tokens_out: int) -> ServerEvent:
    """The event with another token count, where it tells one."""
    return changed(event, tokens_out=tokens_out) if "tokens_out" in event.body else event


def script(body: Body, tokens: Sequence[tuple[str, int]]) -> Iterator[ServerEvent]:
    """A whole well-formed stream of given (text, token id) pairs."""
    started = {"job_id": body["job_id"], "model": "smollm2", "cached_tokens": 0}
    started["started_at"] = datetime.now(UTC).isoformat()
    yield ServerEvent("started", {**started, "seed": body.get("seed", 1), "prompt_tokens": 12})
    for i, (text, token_id) in enumerate(tokens):
        yield ServerEvent("token", {"t": text, "i": i, "id": token_id})
    yield end_event(len(tokens), "length")


class BuffersThenDrips(Saboteur):
    """Collects the whole answer, then plays it back at an even pace."""

    name = "buffers-then-drips"
    cheat = "collects the whole answer before the first token, then drips it evenly"
    caught_by = "G4-GENUINE-SHAPE"

    async def events(self, body: Body, events: Events) -> Events:
        """Hold everything until the end, then one token each 8 ms."""
        held = [event async for event in events]
        for event in held:
            if event.type == "token":
                await asyncio.sleep(0.008)
            yield event


class InstantEmptyFirst(Saboteur):
    """Sends an empty first token at once, so that TTFT looks like zero."""

    name = "instant-empty-first"
    cheat = "sends an empty token before any inference to fake the time to first token"
    caught_by = "G4-GENUINE-COUNT"

    async def events(self, body: Body, events: Events) -> Events:
        """An extra token 0 without text; the others move up."""
        async for event in events:
            if event.type == "token":
                event = changed(event, i=event.body["i"] + 1)
            yield recounted(event, event.body.get("tokens_out", 0) + 1)
            if event.type == "started":
                yield ServerEvent("token", {"t": "", "i": 0, "id": 0})


class FakeChunks(Saboteur):
    """Splits each token into two events to double its rate."""

    name = "fake-chunks"
    cheat = "splits each token into two token events, doubling tokens per second"
    caught_by = "G4-GENUINE-COUNT"

    async def events(self, body: Body, events: Events) -> Events:
        """Two events for each token of two characters and more."""
        i = 0
        async for event in events:
            if event.type == "token":
                text = event.body["t"]
                parts = [text[:1], text[1:]] if len(text) > 1 else [text]
                for part in parts:
                    yield changed(event, t=part, i=i)
                    i += 1
                continue
            yield recounted(event, i)


class PaddedEos(Saboteur):
    """Appends end-of-sequence tokens that count."""

    name = "padded-eos"
    cheat = "pads the answer with a second end-of-sequence token that is counted"
    caught_by = "G4-GENUINE-COUNT"

    async def events(self, body: Body, events: Events) -> Events:
        """Two empty tokens more after the last one, and a natural end."""
        async for event in events:
            n = event.body.get("tokens_out", 0)
            if event.type == "metrics":
                for i in range(n, n + 2):
                    yield ServerEvent("token", {"t": "", "i": i, "id": 2})
            event = recounted(event, n + 2)
            yield changed(event, finish_reason="stop") if event.type == "end" else event


class InflatedUsage(Saboteur):
    """Reports more tokens than it streamed."""

    name = "inflated-usage"
    cheat = "reports a fifth more tokens than were streamed"
    caught_by = "G4-GENUINE-COUNT"

    async def events(self, body: Body, events: Events) -> Events:
        """A larger tokens_out at the end."""
        async for event in events:
            yield recounted(event, event.body.get("tokens_out", 0) * 6 // 5 + 1)


class WrongOrder(Saboteur):
    """Sends the first token before `started`."""

    name = "wrong-order"
    cheat = "sends the first token before the started event"
    caught_by = "G1-HTTP-SSE"

    async def events(self, body: Body, events: Events) -> Events:
        """Hold `started` until a token is out."""
        held: ServerEvent | None = None
        async for event in events:
            if event.type == "started":
                held = event
                continue
            yield event
            if held is not None:
                yield held
                held = None


class TwoTerminals(Saboteur):
    """Ends twice."""

    name = "two-terminals"
    cheat = "sends the terminal event twice"
    caught_by = "G1-HTTP-SSE"

    async def events(self, body: Body, events: Events) -> Events:
        """Repeat a terminal event."""
        async for event in events:
            yield event
            if event.type in ("end", "error"):
                yield event


class NoTerminal(Saboteur):
    """Never ends."""

    name = "no-terminal"
    cheat = "closes the stream without a terminal event"
    caught_by = "G1-HTTP-SSE"

    async def events(self, body: Body, events: Events) -> Events:
        """Drop the terminal event."""
        async for event in events:
            if event.type not in ("end", "error"):
                yield event


class IgnoresStop(Saboteur):
    """Does not pass the stop sequences on."""

    name = "ignores-stop"
    cheat = "generates past the stop sequences"
    caught_by = "G4-GENUINE-STOP"

    async def request(self, body: Body) -> Body:
        """Drop `stop`."""
        return {key: value for key, value in body.items() if key != "stop"}


class EarlyEnd(Saboteur):
    """Ends before max_tokens and calls it a natural end."""

    name = "early-eos"
    cheat = "stops after two thirds of the asked tokens and reports a natural end"
    caught_by = "G4-GENUINE-LENGTH"

    async def request(self, body: Body) -> Body:
        """Ask for fewer tokens."""
        return {**body, "max_tokens": max(1, int(body.get("max_tokens", 2048)) * 2 // 3)}

    async def events(self, body: Body, events: Events) -> Events:
        """Report the cut as `stop`."""
        async for event in events:
            cut = event.type == "end" and event.body["finish_reason"] == "length"
            yield changed(event, finish_reason="stop") if cut else event
