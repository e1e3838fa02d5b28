"""The recording transport: what it keeps, and how it bounds hostile servers."""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness.clients.http import Http, answer, json_body, told_ids, told_object
from harness.errors import LaunchError
from harness.observation import Chunk, Exchange
from harness.transport import REDACTED, Endpoint, Recording, TransportLimits
from tests.unit.open_files import open_files

Script = Callable[[socket.socket, bytes], None]
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-One: 1\r\nConnection: close\r\n\r\n"
)
WAIT_S = 60.0
LIMITS = TransportLimits(total_s=WAIT_S, connect_s=WAIT_S, wire_bytes=200_000)
BRIEF = TransportLimits(total_s=1.0, connect_s=WAIT_S, wire_bytes=200_000)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = self.request.recv(65536)
            if not piece:
                return
            request += piece
        with suppress(OSError):
            self.server.script(self.request, request)  # type: ignore[attr-defined]


@contextmanager
def serving(script: Script) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.script = script  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def fetch(script: Script, limits: TransportLimits = LIMITS) -> Exchange:
    with serving(script) as url:
        return Http(Endpoint(url), limits).exchange("POST", "/execute", b'{"a":1}')


def forever(piece: bytes, pause_s: float = 0.0, head: bytes = HEAD) -> Script:
    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return script


def test_everything_is_recorded() -> None:
    """The second piece is sent only after the first was seen, so that none reads them as one."""
    first_seen = threading.Event()

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + b"data: a\n\n")
        assert first_seen.wait(WAIT_S)
        time.sleep(0.05)
        connection.sendall(b"data: \xff\x00\n\n")

    with serving(script) as url:
        live = Http(Endpoint(url), LIMITS).open(
            "POST", "/execute", b'{"a":1}', on_event=lambda _: first_seen.set()
        )
        exchange = live.finish(WAIT_S)
    assert (exchange.method, exchange.path, exchange.request_body) == (
        "POST",
        "/execute",
        b'{"a":1}',
    )
    assert ("Content-Type", "application/json") in exchange.request_headers
    assert exchange.status == 200
    assert ("X-One", "1") in exchange.response_headers
    assert exchange.body == b"data: a\n\ndata: \xff\x00\n\n"
    assert [chunk.content for chunk in exchange.chunks] == [b"data: a\n\n", b"data: \xff\x00\n\n"]
    assert exchange.head_ns is not None
    assert exchange.closed_ns is not None
    times = [exchange.sent_ns, exchange.head_ns, *(c.arrival_ns for c in exchange.chunks)]
    assert times == sorted(times)
    assert exchange.chunks[1].arrival_ns - exchange.chunks[0].arrival_ns > 30e6
    assert exchange.closed_ns >= times[-1]
    assert (exchange.closed_by, exchange.error) == ("server", None)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        pytest.param(forever(b"x" * 60_000), "more than 200000 bytes", id="endless body"),
        pytest.param(forever(b": x\n", 0.01), "not over after 1.0 s", id="endless comments"),
        pytest.param(forever(b"", 0.1), "not over after 1.0 s", id="silence after the head"),
        pytest.param(
            forever(b"X-H: " + b"y" * 500 + b"\r\n", head=b"HTTP/1.1 200 OK\r\n"),
            "RemoteProtocolError|more than 200000 bytes",
            id="endless headers",
        ),
        pytest.param(
            forever(b"X: y\r\n", 0.01, head=b"HTTP/1.1 200 OK\r\n"),
            "not over after 1.0 s",
            id="dripping headers",
        ),
        pytest.param(
            forever(b"HTTP/1.1 100 Continue\r\n\r\n", 0.005, head=b""),
            "not over after 1.0 s|more than 200000 bytes",
            id="endless 100 Continue",
        ),
        pytest.param(
            lambda connection, _: connection.sendall(b"SSH-2.0-nonsense\r\n\r\n"),
            "RemoteProtocolError",
            id="not HTTP",
        ),
        pytest.param(lambda connection, _: None, "RemoteProtocolError|ReadError", id="no answer"),
        pytest.param(
            lambda connection, _: connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"
            ),
            "RemoteProtocolError",
            id="truncated body",
        ),
    ],
)
def test_a_hostile_server_is_bounded(script: Script, says: str) -> None:
    started = time.monotonic()
    exchange = fetch(script, BRIEF if "not over after" in says else LIMITS)
    assert time.monotonic() - started < WAIT_S / 2
    assert exchange.error is not None
    assert exchange.closed_ns is not None
    assert any(part in exchange.error for part in says.split("|")), exchange.error
    assert exchange.closed_by == ("limit" if "LimitReached" in exchange.error else "server")


def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        exchange = Http(Endpoint(url), LIMITS).exchange("GET", "/health")
    assert exchange.status is None
    assert exchange.error is not None
    assert "ConnectError" in exchange.error


def test_keys_are_not_recorded_but_sent() -> None:
    seen: list[bytes] = []

    def script(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        connection.sendall(HEAD)

    with serving(script) as url:
        http = Http(Endpoint(url, api_key="very-secret"), LIMITS)
        exchange = http.exchange("GET", "/health", headers=[("X-Api-Key", "other-secret")])
    assert b"Bearer very-secret" in seen[0]
    assert b"other-secret" in seen[0]
    assert "secret" not in repr(exchange)
    assert sum(value == REDACTED for _, value in exchange.request_headers) == 2


def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(path, _Handler) as server:
        server.script = lambda connection, _: connection.sendall(HEAD + b"ok")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        exchange = Http(Endpoint("http://engine", uds=path), LIMITS).exchange("GET", "/health")
        thread.join()
    assert exchange.body == b"ok"


def test_nothing_stays_open_where_nobody_listens(tmp_path: Path) -> None:
    silent = str(tmp_path / "nobody.sock")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        places = (Endpoint("http://engine", uds=silent), Endpoint(url))
        clients = [Http(place, LIMITS) for place in places]
        before = open_files()
        for client in clients:
            for _ in range(20):
                exchange = client.exchange("GET", "/health")
                assert (exchange.status, exchange.closed_by) == (None, "server")
                assert exchange.error is not None
                assert exchange.error.startswith("Connect")
        assert open_files() <= before


def test_a_live_exchange_shows_events_and_can_be_left() -> None:
    gone = threading.Event()
    seen: list[str] = []

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + b"event: started\ndata: {}\n\n")
        for _ in range(3):
            connection.sendall(b"event: token\ndata: x\n\n")
            time.sleep(0.02)
        while connection.recv(100):
            pass
        gone.set()

    with serving(script) as url:
        live = Http(Endpoint(url), LIMITS).open(
            "POST", "/execute", b"{}", on_event=lambda timed: seen.append(timed.event.type)
        )
        assert live.wait_connected(WAIT_S)
        assert live.wait_answered(WAIT_S)
        third = live.wait_for("token", WAIT_S, count=3)
        assert third is not None
        assert live.wait_for("end", 0.05) is None
        assert not live.done
        left_ns = live.disconnect()
        exchange = live.finish(WAIT_S)
        assert gone.wait(WAIT_S)
    assert live.done
    assert seen == ["started", "token", "token", "token"]
    assert (exchange.closed_by, exchange.closed_ns) == ("client", left_ns)
    assert exchange.error is None
    assert third.arrival_ns <= left_ns


def test_a_live_exchange_that_will_not_end_is_broken_off() -> None:
    with serving(forever(b": x\n", 0.01)) as url:
        live = Http(Endpoint(url), TransportLimits(total_s=60.0)).open("POST", "/execute", b"{}")
        exchange = live.finish(0.3)
    assert exchange.closed_by == "client"


def test_every_exchange_reaches_the_sink() -> None:
    sink: list[Exchange] = []
    with serving(lambda connection, _: connection.sendall(HEAD + b"hello")) as url:
        http = Http(Endpoint(url), LIMITS, sink.append)
        http.exchange("GET", "/one")
        assert http.httpx_client().get(f"{url}/two").content == b"hello"
    assert [(exchange.path, exchange.body) for exchange in sink] == [
        ("/one", b"hello"),
        ("/two", b"hello"),
    ]


def test_answer_gives_json_or_says_what_is_wrong() -> None:
    exchange = Exchange("GET", "/health", (), b"", 0, status=500, error=None)
    with pytest.raises(LaunchError, match="GET /health: wanted status 200, got 500"):
        answer(exchange)
    assert json.loads(json_body({"t": "é"})) == {"t": "é"}


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"ids": [1, 22]}', [1, 22]),
        (b"", []),
        (b"Internal Server Error", []),
        (b"[1, 22]", []),
        (b"\xff", []),
        (b"[" * 100_000, []),
        (b'{"ids": 5}', []),
        (b'{"ids": [1, true]}', []),
        (b'{"ids": [1, "2"]}', []),
    ],
)
def test_a_broken_answer_tells_no_ids_and_breaks_no_test(body: bytes, ids: list[int]) -> None:
    seen = Exchange("POST", "/tokenize", (), b"", 0, status=500, chunks=(Chunk(1, body),))
    assert told_ids(seen) == ids
    assert not ids or told_object(seen) == {"ids": ids}


def test_illegal_headers_and_paths_are_errors_of_the_exchange() -> None:
    with serving(lambda connection, _: connection.sendall(HEAD)) as url:
        http = Http(Endpoint(url), LIMITS)
        exchange = http.exchange("GET", "/health", headers=[("X-Correlation-Id", "a\r\nb: c")])
    assert exchange.status is None
    assert exchange.error is not None


def test_nothing_is_recorded_after_the_client_left() -> None:
    recording = Recording()
    recording.head(200, [])
    recording.chunk(b"before")
    left_ns = recording.disconnect()
    recording.chunk(b"after")
    seen = recording.exchange()
    assert seen.body == b"before"
    assert seen.closed_ns == left_ns >= seen.chunks[-1].arrival_ns


def test_a_client_that_left_before_the_connection_stood_breaks_it_too() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(WAIT_S)
        recording = Recording()
        recording.disconnect()
        recording.connect(ours)
        assert theirs.recv(1) == b""
