"""Events from the generation thread to the event loop, bounded."""

import asyncio
import contextlib
import threading

from engine.errors import Cancelled
from engine.generate import TERMINAL, Event

CAPACITY = 4096
"""Events a reader may be behind before its job is cancelled."""


class Channel:
    """One job's events: `put` from any thread never blocks, `take` awaits at least one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int = CAPACITY) -> None:
        self._loop = loop
        self._capacity = capacity
        self._lock = threading.Lock()
        self._ready = asyncio.Event()
        self._events: list[Event] = []
        self._signalled = False

    def put(self, event: Event) -> None:
        """Append an event; Cancelled where the reader is `capacity` behind (but terminals fit)."""
        with self._lock:
            if len(self._events) >= self._capacity and not isinstance(event, TERMINAL):
                raise Cancelled(f"the client is {self._capacity} events behind: read the stream")
            self._events.append(event)
            signalled, self._signalled = self._signalled, True
        if not signalled:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> list[Event]:
        """All events put so far, at least one."""
        await self._ready.wait()
        with self._lock:
            events, self._events = self._events, []
            self._signalled = False
            self._ready.clear()
        return events
