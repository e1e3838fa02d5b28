"""What the operating system says about a process and its children."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from harness.observation import Json

Fact = TypeVar("Fact")


def process_facts(pid: int) -> dict[str, Json] | None:
    """Numbers of the process tree under `pid`; None if it is gone.

    `pid`, `create_time` (seconds since 1970) of the leader; `rss_bytes`, `peak_rss_bytes`, `cpu_s`,
    `threads` summed; `processes`, `open_files`, `listening`, `connections`, `maps` collected. A
    fact that the system does not tell is None.
    """
    try:
        leader = psutil.Process(pid)
        tree = [leader, *leader.children(recursive=True)]
        created = leader.create_time()
    except psutil.NoSuchProcess:
        return None
    return {
        "pid": pid,
        "create_time": created,
        "processes": [process.pid for process in tree],
        "rss_bytes": _sum(tree, lambda process: process.memory_info().rss),
        "peak_rss_bytes": _sum(tree, _peak_rss_bytes),
        "anonymous_bytes": _sum(tree, _anonymous_bytes),
        "cpu_s": _sum(tree, lambda process: sum(process.cpu_times()[:2])),
        "threads": _sum(tree, lambda process: process.num_threads()),
        "open_files": _collect(tree, _open_files),
        "listening": _collect(tree, lambda process: _sockets(process, listening=True)),
        "connections": _collect(tree, lambda process: _sockets(process, listening=False)),
        "maps": _collect(tree, lambda process: [m.path for m in process.memory_maps()]),
    }


def listening_ports(pid: int) -> set[int] | None:
    """The TCP ports on which the process tree listens; None where the system does not tell."""
    facts = process_facts(pid)
    if facts is None or facts["listening"] is None:
        return None
    return {int(address.rpartition(":")[2]) for address in facts["listening"] if ":" in address}


def _anonymous_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    shared = getattr(memory, "shared", None)
    if shared is None:
        raise psutil.AccessDenied(process.pid)
    return int(memory.rss - shared)


def _peak_rss_bytes(process: psutil.Process) -> int:
    """The most that was ever resident; Linux counts it in KiB."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise psutil.AccessDenied(process.pid)
    return int(found[1]) << 10


def _open_files(process: psutil.Process) -> list[str]:
    """The regular files it has open; one that only it can name, by the way there from here."""
    files = [file.path for file in process.open_files()]
    descriptors = Path(f"/proc/{process.pid}/fd")
    if not descriptors.is_dir():
        return files
    for descriptor in descriptors.iterdir():
        with suppress(FileNotFoundError):
            path, regular = descriptor.readlink(), descriptor.is_file()
            seen = Path(f"/proc/{process.pid}/root{path}")
            if regular and not path.exists() and seen.exists():
                files.append(str(seen))
    return files


def _sockets(process: psutil.Process, *, listening: bool) -> list[str]:
    found = []
    for connection in process.net_connections("tcp"):
        if (connection.status == psutil.CONN_LISTEN) == listening:
            end = connection.laddr if listening else connection.raddr
            found.append(f"{end.ip}:{end.port}" if end else "")
    return found


def _sum(tree: list[psutil.Process], read: Callable[[psutil.Process], float]) -> float | None:
    values = [_read(process, read) for process in tree]
    return None if None in values else sum(value for value in values if value is not None)


def _collect(
    tree: list[psutil.Process], read: Callable[[psutil.Process], list[str]]
) -> list[str] | None:
    values = [_read(process, read) for process in tree]
    if None in values:
        return None
    return sorted({item for value in values if value is not None for item in value if item})


def _read(process: psutil.Process, read: Callable[[psutil.Process], Fact]) -> Fact | None:
    try:
        return read(process)
    except (psutil.Error, OSError, NotImplementedError):
        return None
