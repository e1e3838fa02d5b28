"""HTTP over uvicorn: bounds on what a slow or silent connection may hold."""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.gateway import bad_request_body

HEAD_TIMEOUT_S = 30.0
"""A connection whose next request head is not complete by then is closed."""

STALL_TIMEOUT_S = 10.0
"""A client that leaves the server's write buffer full for as long is cut off."""


class BoundedProtocol(H11Protocol):
    """One connection, with a time limit on request heads and on unread responses."""

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request head from now on."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that is still incomplete keeps its time limit."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """Cut the connection off if the response is not read in time."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size() and self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self._cut_off_if_unread)

    def pause_writing(self) -> None:
        """The client reads too slowly: give it a while."""
        super().pause_writing()
        self._stop_stall_timer()
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_stall_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the engine's own shape."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(bad_request_body(str(uuid.uuid4())))
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _cut_off_if_unread(self) -> None:
        self._stall_timer = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class HttpServer(uvicorn.Server):
    """Uvicorn without its signal handlers and its log: both are the engine's own."""

    def __init__(self, app: ASGIApp) -> None:
        settings: dict[str, Any] = {
            "http": BoundedProtocol,
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "log_level": "critical",
            "proxy_headers": False,
            "server_header": False,
            "backlog": 2048,
            "timeout_keep_alive": 15,
        }
        super().__init__(uvicorn.Config(app, **settings))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the engine."""
        yield

    @property
    def n_tasks(self) -> int:
        """Requests being answered."""
        return len(self.server_state.tasks)

    def stop(self) -> None:
        """End what is still being answered, close every connection and return from `serve`."""
        for task in list(self.server_state.tasks):
            task.cancel()
        self.should_exit = True
        self.force_exit = True
