"""A runtime, tokenizer and model that need no file, and an engine served from them in-process."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.routing import Router

from engine.admission import Admission, ModelBounds
from engine.backends import Checkpoint, KvSequence, MemoryReport
from engine.gateway import Gateway
from engine.openai_api import openai_routes
from engine.routes import Service, native_routes
from engine.sampler import SampledToken, SamplingParams, TokenScore
from engine.server import HttpServer
from engine.stream_decoder import StreamDecoder
from engine.text_threads import TextThreads
from engine.worker import Worker

VOCAB = 258
EOS = 256


class ByteTokenizer:
    """One token a byte; 256 ends the text."""

    kind = "gguf-bpe"
    eos_ids = (EOS,)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def has_leading_mark(self, token_id: int) -> bool:
        return False

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)

    def decode(self, ids: Sequence[int]) -> tuple[str, int]:
        decoder = self.stream()
        return "".join(map(decoder.push, ids)), decoder.dropped_bytes


class EchoTemplate:
    """Joins the messages' contents."""

    channels = ()

    def encode(self, messages: Sequence[Any]) -> list[int]:
        return list("\n".join(m["content"] for m in messages).encode())


@dataclass
class FakeSequence:
    runtime: "FakeRuntime"
    n_tokens: int = 0
    cached_tokens: int = 0

    def close(self) -> None:
        self.runtime.open_sequences -= 1


@dataclass
class FakeRuntime:
    """Says `script` again and again; a job stays in the phase `hold` until `released` or ended."""

    script: Sequence[int] = tuple(b"hello world ")
    token_s: float = 0.0
    hold: str = ""
    holding: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    error_at: dict[int, Exception] = field(default_factory=dict)
    residency_error: Exception | None = None
    open_sequences: int = 0
    prefilled: int = 0
    vocab_size: int = VOCAB
    context_length: int = 4096
    kv_dtype: str = "F16"
    device: str = "cpu"
    program: Any = None

    def memory(self) -> MemoryReport:
        return MemoryReport(1000, 100 * self.open_sequences, 10, 0)

    def device_facts(self) -> dict[str, Any]:
        return {"sm": 90}

    def verify_residency(self) -> None:
        if self.residency_error is not None:
            raise self.residency_error

    def open_sequence(self, *, cache_prompt: bool = False) -> FakeSequence:
        self.open_sequences += 1
        return FakeSequence(self, cached_tokens=7 if cache_prompt else 0)

    def prefill(
        self, sequence: KvSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        self.prefilled += 1
        checkpoint()
        self._stay("prefill", checkpoint)

    def tokens(
        self, sequence: KvSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]:
        index = 0
        while True:
            checkpoint()
            if index == 2:
                self._stay("decode", checkpoint)
            if index in self.error_at:
                raise self.error_at.pop(index)
            time.sleep(self.token_s)
            top = tuple((i, -1.0 - i) for i in range(sampling.logprobs or 0))
            yield SampledToken(self.script[index % len(self.script)], -0.5, top)
            index += 1

    def _stay(self, phase: str, checkpoint: Checkpoint) -> None:
        while self.hold == phase and not self.released.wait(0.002):
            self.holding.set()
            checkpoint()

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], checkpoint: Checkpoint
    ) -> list[TokenScore]:
        checkpoint()
        return [TokenScore(i, -0.5, 0, i, 0.0) for i in completion_ids]

    def logits(self, token_ids: Sequence[int], checkpoint: Checkpoint) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        return


@dataclass
class Serving:
    """A served fake: where it listens, what it runs on, what it said."""

    url: str
    address: tuple[str, int]
    runtime: FakeRuntime
    worker: Worker
    lines: list[dict[str, Any]]
    stop_requests: list[str]


@contextlib.contextmanager
def serving(
    runtime: FakeRuntime | None = None,
    *,
    api_key: str | None = None,
    max_tokens_out: int = 2048,
    inference_timeout_s: float = 3600.0,
    residency_check_s: float = 0.0,
) -> Iterator[Serving]:
    """Serve a fake model on a free loopback port, from a thread."""
    runtime = runtime or FakeRuntime()
    lines: list[dict[str, Any]] = []

    def narrate(event: str, human: str, **fields: Any) -> None:
        lines.append({"event": event, "human": human, **fields})

    worker = Worker(
        runtime,
        ByteTokenizer(),
        narrate,
        inference_timeout_s=inference_timeout_s,
        residency_check_s=residency_check_s,
    )
    bounds = ModelBounds(runtime.vocab_size, runtime.context_length, max_tokens_out)
    model: Any = SimpleNamespace(name="fake", tokenizer=ByteTokenizer(), path=Path("fake.gguf"))
    stop_requests: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    service = Service(
        model=model,
        worker=worker,
        admission=Admission(ByteTokenizer(), EchoTemplate(), bounds),
        threads=TextThreads(),
        identity=lambda: {"model": "fake"},
        request_shutdown=lambda: stop_requests.append("shutdown"),
    )
    app = Router([*native_routes(service), *openai_routes(service)], redirect_slashes=False)
    closed = worker.queue
    gateway = Gateway(app, narrate, api_key, lambda: closed.closed, worker.metrics.refused)
    server = HttpServer(gateway)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    worker.start()
    thread.start()
    while not server.started:
        time.sleep(0.002)
    address = listener.getsockname()
    try:
        yield Serving(
            f"http://127.0.0.1:{address[1]}", address, runtime, worker, lines, stop_requests
        )
    finally:
        worker.drain()
        worker.queue.cancel_running("the test is over")
        worker.join(60)
        server.stop()
        thread.join(60)
        listener.close()
