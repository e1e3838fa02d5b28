"""The hash-chained ledger: a dropped, edited or reordered record breaks the chain.

Each worker of a run writes its own chain. A line is one compact JSON object with `worker`, `seq`
(from 0), `previous` (SHA-256 of the line before it; for the first line, of the run and worker
names), `at_ns` (UTC wall clock) and `record`. The merged file holds the lines of all workers.
"""

import hashlib
import heapq
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BundleError
from harness.observation import Json
from harness.strict_json import as_object, dumps_line, loads

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""What a run and a worker may be called: reports and commands show these names as they are."""

LEDGER_FIELDS = {"worker", "seq", "previous", "at_ns", "record"}


def genesis(run_id: str, worker: str) -> str:
    """What the first record of a chain holds as `previous`: it ties the chain to its run."""
    return hashlib.sha256(f"haikugate ledger\n{run_id}\n{worker}\n".encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One ledger line, parsed."""

    worker: str
    seq: int
    previous: str
    at_ns: int
    record: dict[str, Json]
    line: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the line, as the next record holds it."""
        return hashlib.sha256(self.line).hexdigest()


@dataclass(frozen=True)
class Root:
    """Where a chain ends: how many records, and the digest of the last."""

    records: int
    digest: str


class LedgerWriter:
    """Appends to one worker's chain; every record reaches the file before `append` returns."""

    def __init__(self, path: Path, run_id: str, worker: str) -> None:
        self.worker = worker
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._previous = genesis(run_id, worker)
        self._seq = 0

    def append(self, record: dict[str, Json]) -> None:
        """Chain one record."""
        line = dumps_line(
            {
                "worker": self.worker,
                "seq": self._seq,
                "previous": self._previous,
                "at_ns": time.time_ns(),
                "record": record,
            }
        )
        _write_whole(self._file, line + b"\n")
        self._previous = hashlib.sha256(line).hexdigest()
        self._seq += 1

    def close(self) -> None:
        """Close the file; a closed ledger takes no more records."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _write_whole(file: int, content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(file, remaining) :]


def _fits(fields: dict[str, Json]) -> bool:
    numbers = (fields.get("seq"), fields.get("at_ns"))
    return (
        set(fields) == LEDGER_FIELDS
        and isinstance(fields["worker"], str)
        and NAME.fullmatch(fields["worker"]) is not None
        and isinstance(fields["previous"], str)
        and isinstance(fields["record"], dict)
        and all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    )


def parse_entry(line: bytes, where: str) -> Entry:
    """Parse one ledger line; raises BundleError naming `where`."""
    fields = as_object(loads(line, where), where)
    if not _fits(fields):
        raise BundleError(f"{where}: a ledger line has {', '.join(sorted(LEDGER_FIELDS))}")
    return Entry(line=line, **fields)


def parse_ledger(content: bytes, where: str) -> tuple[Entry, ...]:
    """Parse a ledger file; raises BundleError at a line that is cut off or malformed."""
    if content and not content.endswith(b"\n"):
        raise BundleError(f"{where}: the last line is cut off")
    lines = content.split(b"\n")[:-1]
    return tuple(parse_entry(line, f"{where}:{n}") for n, line in enumerate(lines, start=1))


def check_chains(entries: Iterable[Entry], run_id: str, where: str) -> dict[str, Root]:
    """Walk every worker's chain to its root; raises BundleError at the first broken link."""
    roots: dict[str, Root] = {}
    for number, entry in enumerate(entries, start=1):
        root = roots.get(entry.worker, Root(0, genesis(run_id, entry.worker)))
        if entry.seq != root.records or entry.previous != root.digest:
            raise BundleError(
                f"{where}:{number}: the chain of {entry.worker} breaks: wanted record"
                f" {root.records} after {root.digest[:12]}, got record {entry.seq} after"
                f" {entry.previous[:12]}"
            )
        roots[entry.worker] = Root(entry.seq + 1, entry.digest)
    return roots


def merge_ledgers(chains: Iterable[tuple[Entry, ...]]) -> bytes:
    """All chains in one file by time; within a worker always the order of its chain."""
    merged = heapq.merge(*chains, key=lambda entry: entry.at_ns)
    return b"".join(entry.line + b"\n" for entry in merged)
