"""Server-sent events out of a job's channel, and who watches for a client that leaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pydantic_core
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.channel import Channel
from engine.generate import TERMINAL, Event

Encode = Callable[[Event], bytes]
"""One event as SSE text (b"" for none)."""

Abandon = Callable[[str], None]
"""Cancels the job, saying why."""

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def sse(name: str | None, fields: Any) -> bytes:
    """One server-sent event: a name (None = unnamed) and one line of JSON."""
    content = pydantic_core.to_json(fields)
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + content + b"\n\n"


class EventStream(Response):
    """Streams a job; a client that leaves cancels it at once, in whatever phase it is."""

    def __init__(self, channel: Channel, encode: Encode, abandon: Abandon) -> None:
        super().__init__(media_type="text/event-stream", headers=_HEADERS)
        del self.headers["content-length"]
        self._channel = channel
        self._encode = encode
        self._abandon = abandon

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events as they come, those that wait together in one write."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with watching(receive, self._abandon):
            await send(head)
            async for events in batches(self._channel):
                content = b"".join(map(self._encode, events))
                await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def batches(channel: Channel) -> AsyncIterator[list[Event]]:
    """Batches of events up to and with the terminal one."""
    while True:
        events = await channel.take()
        yield events
        if isinstance(events[-1], TERMINAL):
            return


async def collect(channel: Channel, receive: Receive, abandon: Abandon) -> list[Event]:
    """All events of a job whose answer is not streamed; a client that leaves cancels it."""
    events: list[Event] = []
    async with watching(receive, abandon):
        async for batch in batches(channel):
            events += batch
    return events


@contextlib.asynccontextmanager
async def watching(receive: Receive, abandon: Abandon) -> AsyncIterator[None]:
    """Call `abandon` when the client disconnects, or when the block is left early."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        abandon("the client disconnected")

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        abandon("the stream was closed")
        raise
    finally:
        watcher.cancel()
