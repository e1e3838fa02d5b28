"""The socket an engine listens on: TCP or UNIX, loopback unless a key protects it."""

import contextlib
import errno
import ipaddress
import os
import resource
import socket
import stat
from pathlib import Path

from engine.errors import EngineError

_SEND_BUFFER_BYTES = 256 << 10
_BACKLOG = 2048


class BindError(EngineError):
    """The address cannot be listened on."""

    code = "BIND_FAILED"


def is_loopback(host: str) -> bool:
    """Whether this host is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind_tcp(host: str, port: int) -> socket.socket:
    """A bound TCP socket; BindError where the port is taken or the host is not ours."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind(address)
    except OSError as error:
        raise BindError(f"{host}:{port}: {_reason(error)}; choose another --port") from error
    listener.setblocking(False)
    return listener


def bind_unix(path: Path) -> socket.socket:
    """A bound UNIX socket, readable by its owner only; replaces a socket that nobody serves."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        previous = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
    except OSError as error:
        listener.close()
        raise BindError(f"{path}: {_reason(error)}; choose another --uds") from error
    listener.setblocking(False)
    return listener


def listen(listener: socket.socket) -> None:
    """Accept connections from now on; BindError where another process was faster."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise BindError(f"{listener.getsockname()}: {_reason(error)}") from error


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: idle connections cost one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise OSError(errno.EEXIST, "a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
