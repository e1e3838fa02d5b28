"""A launched `haikugate-engine serve` with the real default model."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.default_model import DEFAULT_MODEL

MODEL = DEFAULT_MODEL
COMMAND = (sys.executable, "-m", "engine.cli")
WAIT_S = 600.0
"""For what must come, however busy the machine is."""


@dataclass
class EngineProcess:
    """A running engine: its process, its log file, a client for it."""

    process: "subprocess.Popen[bytes]"
    log: Path
    client: httpx.Client

    @property
    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def host(self) -> str:
        return str(self.events("ready")[0]["host"])

    @property
    def port(self) -> int:
        return int(self.events("ready")[0]["port"])

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]

    def await_event(self, name: str) -> None:
        def is_told() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(self.events(name))

        wait_until(is_told)

    def execute(self, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
        body = {"job_id": os.urandom(8).hex(), "max_tokens": 8, "temperature": 0.0, **fields}
        answer = self.client.post("/execute", json=body)
        assert answer.status_code == 200, answer.text
        return parse(answer.text)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal; the exit code, which must come within the contract's 5 s."""
        self.process.send_signal(number)
        return exit_code(self.process)


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks]


def text_of(events: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(fields["t"] for name, fields in events if name == "token")


class Stream(threading.Thread):
    """One request that is being read; `text` is what has come so far."""

    def __init__(
        self, engine: EngineProcess, path: str = "/execute", *, waits: bool = True, **body: Any
    ) -> None:
        super().__init__(daemon=True)
        self._engine, self._path, self._body = engine, path, body
        self.job_id = body.get("job_id", "")
        self.status, self.text = 0, ""
        self.start()
        if waits:
            wait_until(lambda: self.status)

    def run(self) -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            self._engine.client.stream("POST", self._path, json=self._body) as answer,
        ):
            self._socket = answer.extensions["network_stream"].get_extra_info("socket")
            self.status = answer.status_code
            for piece in answer.iter_text():
                self.text += piece

    def leave(self) -> None:
        """Close the connection though there is more to come."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._await_end()

    @property
    def ending(self) -> tuple[str, dict[str, Any]]:
        """The last event, once there is no more to come."""
        self._await_end()
        return parse(self.text)[-1]

    def _await_end(self) -> None:
        self.join(WAIT_S)
        assert not self.is_alive(), "the answer has no end"


def exit_code(process: "subprocess.Popen[bytes]", limit_s: float = 5.0) -> int:
    """The exit code, which must come within a limit of the contract.

    A second counts for less where other work fills the machine, and not at all while nobody ran.
    """
    passed_s, tick_s = 0.0, 0.05
    while passed_s < limit_s:
        begun_s = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(tick_s)
        passed_s += min(2 * tick_s, time.monotonic() - begun_s) / overload()
    raise AssertionError(f"it still runs after {limit_s} s")


def overload() -> float:
    """How many want each processor, 1 to 20."""
    return min(20.0, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))


def wait_until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@contextlib.contextmanager
def started(
    folder: Path, *options: str, uds: Path | None = None, model: Path = MODEL
) -> Iterator[EngineProcess]:
    """Start, and kill at the end; the client has no address yet."""
    log = folder / f"log-{os.urandom(4).hex()}.jsonl"
    address = ("--uds", str(uds)) if uds else ("--port", "0")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--model", str(model), *address, "--log-format", "json", *options],
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        )
    try:
        transport = httpx.HTTPTransport(uds=str(uds)) if uds else None
        with httpx.Client(transport=transport, timeout=WAIT_S, trust_env=False) as client:
            yield EngineProcess(process, log, client)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(WAIT_S)


@contextlib.contextmanager
def launched(
    folder: Path, *options: str, uds: Path | None = None, model: Path = MODEL
) -> Iterator[EngineProcess]:
    """Launch, wait for `ready`, kill at the end."""
    with started(folder, *options, uds=uds, model=model) as engine:
        engine.await_event("ready")
        ready = engine.events("ready")[0]
        engine.client.base_url = "http://engine" if uds else f"http://127.0.0.1:{ready['port']}"
        yield engine
