"""A launched `haikugate-engine serve` with the real default model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

MODEL = Path.home() / ".cache/haikugate/models/SmolLM2-135M-Instruct.Q4_1.gguf"
COMMAND = (sys.executable, "-m", "engine.cli")


@dataclass
class EngineProcess:
    """A running engine: its process, its log file, a client for it."""

    process: "subprocess.Popen[bytes]"
    log: Path
    client: httpx.Client

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]

    def execute(self, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
        body = {"job_id": os.urandom(8).hex(), "max_tokens": 8, "temperature": 0.0, **fields}
        answer = self.client.post("/execute", json=body)
        assert answer.status_code == 200, answer.text
        return parse(answer.text)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(20), time.monotonic() - begun


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks]


def text_of(events: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(fields["t"] for name, fields in events if name == "token")


@contextlib.contextmanager
def launched(folder: Path, *options: str, uds: Path | None = None) -> Iterator[EngineProcess]:
    """Launch, wait for `ready`, kill at the end."""
    log = folder / f"log-{os.urandom(4).hex()}.jsonl"
    address = ("--uds", str(uds)) if uds else ("--port", "0")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--model", str(MODEL), *address, "--log-format", "json", *options],
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 120
        while '"ready"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ready = next(
            x for x in map(json.loads, log.read_text().splitlines()) if x["event"] == "ready"
        )
        url = "http://engine" if uds else f"http://127.0.0.1:{ready['port']}"
        transport = httpx.HTTPTransport(uds=str(uds)) if uds else None
        with httpx.Client(
            base_url=url, transport=transport, timeout=120, trust_env=False
        ) as client:
            yield EngineProcess(process, log, client)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
