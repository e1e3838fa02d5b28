"""One container from its creation to its removal: its output, its state, how it ended."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any, Final

from harness.errors import LaunchError
from harness.launch import ExitFacts
from harness.launch.docker_daemon import explained
from harness.launch.docker_owner import remove
from harness.launch.logs import LogCapture
from harness.observation import Json

POLL_S: Final = 0.05
SIGNAL_EXIT: Final = 128
STREAMS: Final = {1: "stdout", 2: "stderr"}


@dataclass(frozen=True)
class ContainerState:
    """What Docker says of a container; `code` is None while it runs, negative for a signal."""

    running: bool
    code: int | None
    oom_killed: bool
    pid: int
    error: str

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "ContainerState":
        """The state in the answer of `docker inspect`."""
        state = attributes.get("State") or {}
        running = bool(state.get("Running"))
        return cls(
            running=running,
            code=None if running else _signed(int(state.get("ExitCode") or 0)),
            oom_killed=bool(state.get("OOMKilled")),
            pid=int(state.get("Pid") or 0),
            error=str(state.get("Error") or ""),
        )


class Container:
    """A created container; `start` runs it, `end` tells how it ended and removes it."""

    def __init__(self, client: Any, log_file: Path | None, settings: Mapping[str, Any]) -> None:
        self._client = client
        self._log = LogCapture(log_file)
        with explained("docker: creating the container"):
            self._container = client.containers.create(**settings)
        self._started = time.monotonic()
        self._pid = 0
        self._last: ContainerState | None = None
        self._exit: ExitFacts | None = None

    @property
    def id(self) -> str:
        """The container's id."""
        return str(self._container.id)

    def start(self) -> None:
        """Follow its output from the first byte, then run it."""
        with explained("docker: starting the container"):
            wanted = {"stdout": 1, "stderr": 1, "stream": 1, "logs": 1}
            follow_output(self._client.api.attach_socket(self.id, params=wanted), self._log)
            self._container.start()
        self._started = time.monotonic()
        self._pid = self.state().pid

    def inspect(self) -> Mapping[str, Any]:
        """What `docker inspect` says now."""
        with explained(f"docker: container {self.id[:12]}"):
            self._container.reload()
        attributes: Mapping[str, Any] = self._container.attrs
        return attributes

    def state(self) -> ContainerState:
        """Its state now; once it has ended, the state it ended in."""
        import docker.errors

        if self._last is None or self._last.running:
            try:
                self._last = ContainerState.of(self.inspect())
            except LaunchError as error:
                if not isinstance(error.__cause__, docker.errors.NotFound):
                    raise
                self._last = ContainerState(False, None, False, 0, "removed by somebody else")
        return self._last

    def signal(self, number: int) -> None:
        """Send a signal to its first process; nothing happens if it has ended."""
        import docker.errors

        with explained(f"docker: signal {number}"), suppress(docker.errors.NotFound):
            try:
                self._container.kill(signal=number)
            except docker.errors.APIError as error:
                if error.status_code != 409:
                    raise

    def wait(self, timeout_s: float) -> bool:
        """Whether it ends by itself within this time."""
        deadline = time.monotonic() + timeout_s
        while self.state().running:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def end(self, *, timed_out: bool) -> ExitFacts:
        """Kill what still runs, remove the container, and say how it ended."""
        if self._exit is None:
            duration_s = time.monotonic() - self._started
            state = self._killed()
            self._log.join()
            remove(self._container)
            self._exit = ExitFacts(
                code=state.code,
                stdout=self._log.text("stdout"),
                stderr=self._log.text("stderr"),
                duration_s=duration_s,
                pid=self._pid or None,
                timed_out=timed_out,
                oom_killed=state.oom_killed,
            )
        return self._exit

    def lines(self) -> list[str]:
        """What it printed, newest lines last."""
        return self._log.lines()

    def drain(self) -> None:
        """Wait for the last output of a container that has ended."""
        self._log.join()

    def usage(self) -> dict[str, Json]:
        """The container's own counters, for where its processes cannot be seen from here."""
        with explained(f"docker: container {self.id[:12]}"):
            stats = self._container.stats(stream=False)
        memory = stats.get("memory_stats") or {}
        detail = memory.get("stats") or {}
        cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
        return {
            "rss_bytes": memory.get("usage"),
            "anonymous_bytes": detail.get("anon", detail.get("rss")),
            "cpu_s": cpu.get("total_usage", 0) / 1e9,
            "threads": (stats.get("pids_stats") or {}).get("current"),
        }

    def _killed(self) -> ContainerState:
        if self.state().running:
            self.signal(9)
            self.wait(10.0)
        return self.state()


def follow_output(attached: Any, log: LogCapture) -> None:
    """Feed an attached container's stdout and stderr to the log until both end."""
    pipes = {}
    for stream, name in STREAMS.items():
        reader, writer = os.pipe()
        pipes[stream] = os.fdopen(writer, "wb", buffering=0)
        log.follow(name, os.fdopen(reader, "rb"))
    Thread(target=_pump, args=(attached, pipes), daemon=True, name="docker-log").start()


def _pump(attached: Any, pipes: Mapping[int, IO[bytes]]) -> None:
    from docker.utils.socket import SocketError, frames_iter

    try:
        with suppress(OSError, SocketError):
            for stream, content in frames_iter(attached, tty=False):
                if stream in pipes:
                    pipes[stream].write(content)
    finally:
        for pipe in pipes.values():
            pipe.close()
        _close(attached)


def _close(attached: Any) -> None:
    response = getattr(attached, "_response", None)
    for part in (response, attached, getattr(attached, "_sock", None)):
        if part is not None:
            with suppress(OSError, ValueError):
                part.close()


def _signed(code: int) -> int:
    return SIGNAL_EXIT - code if SIGNAL_EXIT < code <= SIGNAL_EXIT + 64 else code
