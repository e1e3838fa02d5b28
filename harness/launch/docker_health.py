"""The image's HEALTHCHECK: asks the engine in this container for /health, wherever it listens."""

import http.client
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

DEFAULT_PORT = 8080
TIMEOUT_S = 4.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path instead of a port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def option(arguments: Sequence[str], name: str) -> str | None:
    """The value of `name VALUE` or `name=VALUE` on a command line, else None."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == name:
            return following
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def connection(arguments: Sequence[str], timeout_s: float) -> http.client.HTTPConnection:
    """A connection to where an engine started with these arguments listens."""
    uds = option(arguments, "--uds")
    if uds is not None:
        return UnixConnection(uds, timeout_s)
    host = option(arguments, "--host") or "127.0.0.1"
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    port = int(option(arguments, "--port") or DEFAULT_PORT)
    return http.client.HTTPConnection(loopback, port, timeout=timeout_s)


def main(command_line: Path = Path("/proc/1/cmdline")) -> int:
    """0 if GET /health answers 200 with status healthy, else 1 and one line that says why."""
    arguments = command_line.read_bytes().decode(errors="replace").split("\0")
    try:
        with closing(connection(arguments, TIMEOUT_S)) as asked:
            asked.request("GET", "/health")
            answer = asked.getresponse()
            body = answer.read(65536)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"/health: {error}")
        return 1
    healthy = answer.status == 200 and b'"healthy"' in body
    print(f"/health: {answer.status} {body[:200].decode(errors='replace')}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
