"""What a process prints, kept within bounds: the newest lines in memory, the rest in a file."""

from collections import deque
from pathlib import Path
from threading import Lock, Thread
from time import monotonic, sleep
from typing import IO, Final

from harness.launch import RunningEngine

MAX_LINES: Final = 50_000
MAX_LINE_BYTES: Final = 64 << 10
MAX_STREAM_BYTES: Final = 8 << 20
MAX_FILE_BYTES: Final = 64 << 20
DRAIN_S: Final = 20.0
"""How long the last output may take; only a stray that holds a pipe open makes anyone wait so."""


class LogCapture:
    """Reads a process's stdout and stderr until both end; never blocks the process."""

    def __init__(self, file: Path | None = None) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._streams: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._lock = Lock()
        self._threads: list[Thread] = []
        self._file_left = MAX_FILE_BYTES
        self._file = None if file is None else file.open("wb")

    def follow(self, name: str, pipe: IO[bytes]) -> None:
        """Read this pipe, in a thread, to its end."""
        thread = Thread(target=self._read, args=(name, pipe), daemon=True, name=f"log-{name}")
        self._threads.append(thread)
        thread.start()

    def lines(self) -> list[str]:
        """The newest lines of both streams, in order of arrival."""
        with self._lock:
            return list(self._lines)

    def text(self, name: str) -> str:
        """The first bytes of one stream, up to its bound."""
        with self._lock:
            return self._streams[name].decode("utf-8", errors="replace")

    def join(self, timeout_s: float = DRAIN_S) -> None:
        """Wait until the pipes have ended, and close the file whether they have or not."""
        deadline = monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.close()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(MAX_LINE_BYTES):
                self._take(name, line)

    def _take(self, name: str, line: bytes) -> None:
        with self._lock:
            self._lines.append(line.decode("utf-8", errors="replace").rstrip("\r\n"))
            stream = self._streams[name]
            stream += line[: MAX_STREAM_BYTES - len(stream)]
            if self._file is not None and self._file_left > 0:
                self._file.write(line[: self._file_left])
                self._file.flush()
                self._file_left -= len(line)


def lines_after(engine: RunningEngine, awaited: str, patience_s: float = 10.0) -> list[str]:
    """What an engine printed, once a line with `awaited` has come or patience is over.

    Output takes its own way, through a pipe or a container's log, and may come after an answer that
    was sent later.
    """
    deadline = monotonic() + patience_s
    while monotonic() < deadline and not any(awaited in line for line in engine.log_lines()):
        sleep(0.05)
    return engine.log_lines()
