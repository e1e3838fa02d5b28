"""The recording HTTP transport: every byte an engine says passes here, dated and bounded."""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any, Final, Literal

import httpcore
import httpx

from harness.observation import Chunk, Exchange

REDACTED: Final = "[redacted]"
SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})

Headers = Sequence[tuple[str, str]]
ClosedBy = Literal["server", "client", "limit"]


@dataclass(frozen=True)
class Endpoint:
    """Where an engine listens; with `uds`, over that UNIX socket."""

    base_url: str
    uds: str | None = None
    api_key: str | None = None


@dataclass(frozen=True)
class TransportLimits:
    """What one exchange may cost; beyond it the connection is closed by the harness."""

    total_s: float = 120.0
    connect_s: float = 5.0
    wire_bytes: int = 64 << 20


DEFAULT_LIMITS: Final = TransportLimits()


class Recording:
    """One exchange while it happens; `exchange()` is its final, immutable form."""

    def __init__(self, limits: TransportLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.on_chunk: Callable[[Chunk], None] | None = None
        self._request: tuple[str, str, Headers, bytes] = ("", "", (), b"")
        self._status: int | None = None
        self._response_headers: Headers = ()
        self._sent_ns = time.monotonic_ns()
        self._head_ns: int | None = None
        self._closed_ns: int | None = None
        self._closed_by: ClosedBy = "server"
        self._error: str | None = None
        self._chunks: list[Chunk] = []
        self._socket: socket.socket | None = None
        self.connected, self.answered = Flag(), Flag()

    def send(self, request: httpx.Request) -> None:
        """Note the request and start the clock."""
        headers = [(_text(name), _text(value)) for name, value in request.headers.raw]
        path = request.url.raw_path.decode("ascii")
        self._request = (request.method, path, _redact(headers), request.content)
        self._sent_ns = time.monotonic_ns()

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Note the response's status line and headers, unless the client left before."""
        now_ns = time.monotonic_ns()
        if self._closed_ns is not None:
            return
        self._head_ns = now_ns
        self._status = status
        self._response_headers = [(_text(name), _text(value)) for name, value in headers]
        self.answered.set()

    def chunk(self, content: bytes) -> None:
        """Note a piece of the body, unless the client left before it came."""
        chunk = Chunk(time.monotonic_ns(), content)
        if self._closed_ns is not None:
            return
        self._chunks.append(chunk)
        if self.on_chunk is not None:
            self.on_chunk(chunk)

    def fail(self, error: Exception) -> None:
        """Note why the exchange broke off."""
        if self._closed_ns is None:
            self._closed_by = "limit" if isinstance(error, LimitReached) else "server"
            self._error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    def close(self) -> None:
        """Stop the clock; later calls change nothing."""
        if self._closed_ns is None:
            self._closed_ns = time.monotonic_ns()

    def connect(self, connection: socket.socket | None) -> None:
        """Note the connection, so that `disconnect` can break it, also where that came first."""
        self._socket = connection
        self.connected.set()
        if self._closed_ns is not None and connection is not None:
            _shut(connection)

    def disconnect(self) -> int:
        """Close the connection as a client that goes away; returns when, in monotonic ns."""
        if self._closed_ns is None:
            self._closed_by = "client"
            self._closed_ns = time.monotonic_ns()
            if self._socket is not None:
                _shut(self._socket)
        return self._closed_ns

    def exchange(self) -> Exchange:
        """The exchange as recorded so far."""
        method, path, headers, body = self._request
        return Exchange(
            method=method,
            path=path,
            request_headers=tuple(headers),
            request_body=body,
            sent_ns=self._sent_ns,
            status=self._status,
            response_headers=tuple(self._response_headers),
            head_ns=self._head_ns,
            chunks=tuple(self._chunks),
            closed_ns=self._closed_ns,
            closed_by=self._closed_by,
            error=self._error,
        )


class LimitReached(httpcore.ReadError):
    """The exchange took more bytes or more time than its limits."""


class RecordingTransport(httpx.BaseTransport):
    """An httpx transport with one connection an exchange, so that each is bounded by itself.

    A caller may pass its own Recording as `extensions={"recording": ...}`; `on_exchange` gets every
    finished exchange.
    """

    def __init__(
        self,
        *,
        uds: str | None = None,
        limits: TransportLimits = DEFAULT_LIMITS,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        self._uds = uds
        self._limits = limits
        self._on_exchange = on_exchange

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; httpx reads the body through the recorded stream."""
        recording = request.extensions.get("recording") or Recording(self._limits)
        request.read()
        recording.send(request)
        pool = httpcore.ConnectionPool(
            uds=self._uds, max_connections=1, network_backend=_BoundedBackend(recording)
        )
        try:
            response = pool.handle_request(_core_request(request, recording.limits))
        except Exception as error:
            recording.fail(error)
            self._finish(recording, pool)
            raise _httpx_error(error, request) from error
        recording.head(response.status, response.headers)
        stream = _RecordedStream(
            response, recording, request, lambda: self._finish(recording, pool)
        )
        return httpx.Response(response.status, headers=response.headers, stream=stream)

    def _finish(self, recording: Recording, pool: httpcore.ConnectionPool) -> None:
        recording.close()
        pool.close()
        if self._on_exchange is not None:
            self._on_exchange(recording.exchange())


class _RecordedStream(httpx.SyncByteStream):
    def __init__(
        self,
        response: httpcore.Response,
        recording: Recording,
        request: httpx.Request,
        finish: Callable[[], None],
    ) -> None:
        self._response = response
        self._recording = recording
        self._request = request
        self._finish: Callable[[], None] | None = finish

    def __iter__(self) -> Iterator[bytes]:
        try:
            for content in self._response.iter_stream():
                self._recording.chunk(content)
                yield content
        except Exception as error:
            self._recording.fail(error)
            raise _httpx_error(error, self._request) from error

    def close(self) -> None:
        finish, self._finish = self._finish, None
        if finish is not None:
            self._response.close()
            finish()


class _BoundedBackend(httpcore.NetworkBackend):
    """Connects as httpcore does, and lends each connection only its exchange's time and bytes."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _BoundedStream(stream, self._recording)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.NetworkStream:
        return _BoundedStream(_UnixStream(path, timeout), self._recording)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _BoundedStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, recording: Recording) -> None:
        self._inner = inner
        self._limits = recording.limits
        self._deadline = time.monotonic() + recording.limits.total_s
        self._bytes_left = recording.limits.wire_bytes
        recording.connect(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            content = self._inner.read(max_bytes, self._time_left())
        except httpcore.ReadTimeout as error:
            raise self._too_long() from error
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            raise LimitReached(f"the engine sent more than {self._limits.wire_bytes} bytes")
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._time_left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        self._inner = self._inner.start_tls(ssl_context, server_hostname, self._time_left())
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def _time_left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._too_long()
        return left

    def _too_long(self) -> LimitReached:
        return LimitReached(f"the exchange was not over after {self._limits.total_s} s")


class _UnixStream(httpcore.NetworkStream):
    """A UNIX socket; httpcore's own leaves the socket open when connecting fails."""

    def __init__(self, path: str, timeout: float | None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise httpcore.ConnectError(str(error)) from error

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        return self._socket if info == "socket" else None


def _core_request(request: httpx.Request, limits: TransportLimits) -> httpcore.Request:
    url = httpcore.URL(
        scheme=request.url.raw_scheme,
        host=request.url.raw_host,
        port=request.url.port,
        target=request.url.raw_path,
    )
    timeouts = {"connect": limits.connect_s, "read": None, "write": None, "pool": limits.connect_s}
    return httpcore.Request(
        request.method,
        url,
        headers=request.headers.raw,
        content=request.content,
        extensions={"timeout": timeouts},
    )


_HTTPX_ERRORS: Final[tuple[tuple[type[Exception], type[httpx.TransportError]], ...]] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (LimitReached, httpx.ReadError),
    (httpcore.TimeoutException, httpx.ReadTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (Exception, httpx.ReadError),
)


def _httpx_error(error: Exception, request: httpx.Request) -> httpx.TransportError:
    wanted = next(to for kind, to in _HTTPX_ERRORS if isinstance(error, kind))
    return wanted(str(error), request=request)


def _redact(headers: Headers) -> Headers:
    return [(name, REDACTED if name.lower() in SECRET_HEADERS else v) for name, v in headers]


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()
