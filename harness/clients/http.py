"""HTTP with one engine, recorded: whole exchanges, and streams watched while they run."""

import json
from collections.abc import Callable, Mapping
from threading import Condition, Thread
from time import monotonic
from typing import ClassVar

import httpx

from harness.errors import LaunchError, ProtocolError
from harness.observation import Chunk, Exchange, Json
from harness.sse import Event, EventDecoder, TimedEvent
from harness.transport import (
    DEFAULT_LIMITS,
    Endpoint,
    Headers,
    Recording,
    RecordingTransport,
    TransportLimits,
)

OnEvent = Callable[[TimedEvent], None]
READY_LIMITS = TransportLimits(total_s=2.0, connect_s=1.0, wire_bytes=1 << 20)


class Http:
    """One engine's HTTP API; what goes wrong is the `error` of an Exchange, never an exception."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: TransportLimits = DEFAULT_LIMITS,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self._url = httpx.URL(endpoint.base_url)
        self._client = httpx.Client(
            transport=RecordingTransport(uds=endpoint.uds, limits=limits, on_exchange=on_exchange),
            headers=_base_headers(endpoint),
            timeout=limits.total_s,
        )

    def exchange(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        limits: TransportLimits | None = None,
    ) -> Exchange:
        """One request and all that came back."""
        recording = Recording(limits or self.limits)
        self._run(recording, method, path, body, headers)
        return recording.exchange()

    def open(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        on_event: OnEvent | None = None,
    ) -> "LiveExchange":
        """Start a request in the background and watch the events of its answer."""
        live = LiveExchange(Recording(self.limits), on_event)
        live.start(lambda recording: self._run(recording, method, path, body, headers))
        return live

    def httpx_client(self) -> httpx.Client:
        """The recording httpx client, for client libraries that take one."""
        return self._client

    def _run(
        self, recording: Recording, method: str, path: str, body: bytes, headers: Headers
    ) -> None:
        url = self._url.copy_with(raw_path=path.encode("utf-8"))
        content_type = [("Content-Type", "application/json")] if body else []
        try:
            with self._client.stream(
                method,
                url,
                content=body or None,
                headers=_with_defaults(headers, content_type),
                extensions={"recording": recording},
            ) as response:
                for _ in response.iter_raw():
                    pass
        except (httpx.TransportError, httpx.InvalidURL, ValueError) as error:
            recording.fail(error)
        finally:
            recording.close()


class HttpClient:
    """What the client of any engine has: recorded requests, and a route that says it is ready."""

    ready_path: ClassVar[str] = "/health"

    def __init__(
        self,
        endpoint: Endpoint,
        limits: TransportLimits = DEFAULT_LIMITS,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        self.http = Http(endpoint, limits, on_exchange)

    def is_ready(self) -> bool:
        """Whether `ready_path` answers 200."""
        return self.raw("GET", self.ready_path, limits=READY_LIMITS).status == 200

    def health(self) -> Exchange:
        """GET `ready_path`: the health route, or what an API has in its place."""
        return self.raw("GET", self.ready_path)

    def raw(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        limits: TransportLimits | None = None,
    ) -> Exchange:
        """Any request, also one that a contract forbids."""
        return self.http.exchange(method, path, body, headers, limits)


class LiveExchange:
    """A running exchange: wait for its events, break it off, collect what was recorded."""

    def __init__(self, recording: Recording, on_event: OnEvent | None = None) -> None:
        self._recording = recording
        self._on_event = on_event
        self._decoder = EventDecoder()
        self._changed = Condition()
        self._events: list[TimedEvent] = []
        self._done = False
        self._thread: Thread | None = None
        recording.on_chunk = self._take

    def start(self, run: Callable[[Recording], None]) -> None:
        """Run the exchange in a thread of its own."""
        self._thread = Thread(target=self._drive, args=(run,), daemon=True, name="live-exchange")
        self._thread.start()

    @property
    def events(self) -> list[TimedEvent]:
        """The events so far, decoded leniently: for timing only, judges decode the raw bytes."""
        with self._changed:
            return list(self._events)

    @property
    def done(self) -> bool:
        """Whether the exchange is over."""
        return self._done

    def wait_for(self, type_: str, timeout_s: float, count: int = 1) -> TimedEvent | None:
        """The `count`-th event of this type; None if the exchange ends or time runs out first."""
        return self.wait_until(lambda event: event.type == type_, timeout_s, count)

    def wait_until(
        self, wanted: Callable[[Event], bool], timeout_s: float, count: int = 1
    ) -> TimedEvent | None:
        """The `count`-th event that `wanted` accepts, or None as in `wait_for`."""
        deadline = monotonic() + timeout_s
        with self._changed:
            while True:
                found = [timed for timed in self._events if wanted(timed.event)]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - monotonic()
                if self._done or left <= 0:
                    return None
                self._changed.wait(left)

    def wait_connected(self, timeout_s: float) -> bool:
        """Whether the connection stands within this time."""
        return self._recording.connected.wait(timeout_s)

    def wait_answered(self, timeout_s: float) -> bool:
        """Whether the head of an answer comes within this time."""
        return self._recording.answered.wait(timeout_s)

    def disconnect(self) -> int:
        """Go away as a client does; returns when, in monotonic nanoseconds."""
        return self._recording.disconnect()

    def finish(self, timeout_s: float) -> Exchange:
        """The whole exchange; broken off by the client if it is not over within this time."""
        assert self._thread is not None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._recording.disconnect()
            self._thread.join(5.0)
        return self._recording.exchange()

    def _drive(self, run: Callable[[Recording], None]) -> None:
        try:
            run(self._recording)
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _take(self, chunk: Chunk) -> None:
        try:
            decoded = self._decoder.push(chunk.content)
        except ProtocolError:
            return
        timed = [TimedEvent(chunk.arrival_ns, event) for event in decoded]
        with self._changed:
            self._events += timed
            self._changed.notify_all()
        if self._on_event is not None:
            for event in timed:
                self._on_event(event)


def json_body(fields: Json) -> bytes:
    """A request body: compact JSON, UTF-8."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def answer(exchange: Exchange, status: int = 200) -> Json:
    """The JSON of a whole answer that the harness itself needs; LaunchError if there is none."""
    where = f"{exchange.method} {exchange.path}"
    if exchange.status != status or exchange.error is not None:
        said = exchange.error or exchange.body[:200].decode("utf-8", errors="replace")
        raise LaunchError(f"{where}: wanted status {status}, got {exchange.status}: {said}")
    try:
        return json.loads(exchange.body)
    except ValueError as error:
        raise LaunchError(f"{where}: wanted JSON, got {exchange.body[:80]!r} ({error})") from None


def told_object(exchange: Exchange) -> Mapping[str, Json]:
    """The JSON object of an answer, for asking on; empty where it is none: judges read it anew."""
    try:
        found = json.loads(exchange.body or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def told_ids(exchange: Exchange) -> list[int]:
    """The token ids of a /tokenize answer, for asking on; none where it tells none."""
    ids = told_object(exchange).get("ids")
    return ids if isinstance(ids, list) and all(type(one) is int for one in ids) else []


def _base_headers(endpoint: Endpoint) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "haikugate"}
    if endpoint.api_key is not None:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    return headers


def _with_defaults(headers: Headers, defaults: Headers) -> list[tuple[bytes, bytes]]:
    named = {name.lower() for name, _ in headers}
    merged = [*headers, *((name, value) for name, value in defaults if name.lower() not in named)]
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in merged]
