"""An honest proxy before an honest engine; each saboteur overrides one of its turns.

The proxy owns its engine: it starts the reference engine on a private UNIX socket, passes every
request on, and dies with it. Unchanged it is the control: it must be judged like the engine itself.
"""

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from harness.sse import EventDecoder

Body = dict[str, Any]
READY_TIMEOUT_S = 120.0
PATIENCE_S = 600.0
HOP_HEADERS = frozenset({"content-length", "transfer-encoding", "connection", "host"})
OPENAI_PATHS = ("/v1/completions", "/v1/chat/completions")
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]


@dataclass(frozen=True)
class ServerEvent:
    """One event of an /execute stream: its type and its JSON."""

    type: str
    body: Body

    def encode(self) -> bytes:
        """The event as bytes of an event stream."""
        text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))
        return f"event: {self.type}\ndata: {text}\n\n".encode()


Events = AsyncGenerator[ServerEvent, None]


class Saboteur:
    """The honest proxy. `caught_by` names the check that must catch a subclass."""

    name: ClassVar[str] = "honest-proxy"
    cheat: ClassVar[str] = "none: passes everything on (the control)"
    caught_by: ClassVar[str] = ""
    engine_args: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.n_jobs = 0
        self.upstream: httpx.AsyncClient
        self.engine: subprocess.Popen[bytes]
        self.command: list[str] = []
        self.stopping = False

    def model(self, path: Path, scratch: Path) -> Path:
        """The model file that the engine really loads."""
        return path

    async def request(self, body: Body) -> Body:
        """The /execute request as it is passed on."""
        return body

    def events(self, body: Body, events: Events) -> Events:
        """The /execute stream as it is passed back; `body` is what the client asked for."""
        return events

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """Serve one /execute."""
        self.n_jobs += 1
        passed_on = await self.request(dict(body))
        sent = self.upstream.build_request("POST", "/execute", json=passed_on, headers=headers)
        answer = await self.upstream.send(sent, stream=True)
        kept = _kept(answer.headers)
        if answer.status_code != 200:
            content = await answer.aread()
            await answer.aclose()
            return Response(content, answer.status_code, kept)
        stream = self._encoded(body, answer)
        return StreamingResponse(stream, 200, kept)

    async def stream_openai(self, path: str, body: Body, headers: dict[str, str]) -> Response:
        """Serve one streamed completion of the OpenAI routes, asked for by `request`'s rule."""
        passed_on = _as_openai(await self.request(_as_native(body)))
        sent = self.upstream.build_request("POST", path, json=passed_on, headers=headers)
        answer = await self.upstream.send(sent, stream=True)
        return StreamingResponse(_raw(answer), answer.status_code, _kept(answer.headers))

    async def _encoded(self, body: Body, answer: httpx.Response) -> AsyncIterator[bytes]:
        async with aclosing(_decoded(answer)) as decoded:
            async for event in self.events(body, decoded):
                yield event.encode()

    async def answer(self, path: str, asked: Body, answer: Body) -> Body:
        """A JSON answer of any other route as it is passed back."""
        return answer

    async def metrics(self, text: str) -> str:
        """The Prometheus text as it is passed back."""
        return text

    async def cancel(self, body: Body) -> bool:
        """Whether a cancel is passed on (else it is answered 202 and dropped)."""
        return True

    async def ask(self, body: Body) -> list[ServerEvent]:
        """A request of the proxy's own to its engine, read to its end."""
        return [event async for event in self.stream(body)]

    async def stream(self, body: Body) -> Events:
        """A request of the proxy's own to its engine, event by event."""
        async with self.upstream.stream("POST", "/execute", json=body) as answer:
            async for event in _decoded(answer):
                yield event

    async def post(self, path: str, body: Body) -> Body:
        """A JSON request of the proxy's own to its engine."""
        answer = await self.upstream.post(path, json=body)
        found: Body = answer.json()
        return found

    def narrate(self, line: bytes) -> bytes:
        """A narration line of the engine as it is passed on."""
        return line

    async def start(self) -> None:
        """Start the engine, pass its narration on, and wait until it is ready."""
        self.engine = subprocess.Popen(self.command, stderr=subprocess.PIPE)
        threading.Thread(target=self._narrate, args=(self.engine.stderr,), daemon=True).start()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if (code := self.engine.poll()) is not None:
                sys.exit(code)
            try:
                if (await self.upstream.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        sys.exit(1)

    def _narrate(self, lines: IO[bytes]) -> None:
        for line in lines:
            sys.stderr.buffer.write(self.narrate(line))
            sys.stderr.buffer.flush()

    async def stop(self) -> None:
        """Stop the engine and wait for its end."""
        self.stopping = True
        self.engine.terminate()
        await asyncio.to_thread(self.engine.wait)

    async def restart(self) -> None:
        """Replace the engine's process by a new one."""
        await self.stop()
        await self.start()
        self.stopping = False

    async def handle(self, request: Request) -> Response:
        """Serve one request of any route."""
        content, path = await request.body(), request.url.path
        headers = {k: v for k, v in request.headers.items() if k not in HOP_HEADERS}
        body = _json_object(content)
        if request.method == "POST" and path == "/execute" and body is not None:
            return await self.execute(body, headers)
        if path in OPENAI_PATHS and body is not None and body.get("stream") is True:
            return await self.stream_openai(path, body, headers)
        if path == "/cancel" and body is not None and not await self.cancel(body):
            return Response(b'{"status":"cancelling"}', 202, {"content-type": "application/json"})
        answer = await self.upstream.request(
            request.method, _target(request), content=content, headers=headers
        )
        return await self._passed_back(path, body or {}, answer)

    async def _passed_back(self, path: str, asked: Body, answer: httpx.Response) -> Response:
        content = answer.content
        if path == "/metrics":
            content = (await self.metrics(answer.text)).encode()
        elif answer.status_code < 300 and (found := _json_object(content)) is not None:
            content = json.dumps(await self.answer(path, asked, found)).encode()
        return Response(content, answer.status_code, _kept(answer.headers))


def _target(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _kept(headers: httpx.Headers) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() not in HOP_HEADERS}


def _json_object(content: bytes) -> Body | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _as_native(body: Body) -> Body:
    """The request with its prompt by the name that the native API has for it."""
    ids = body.get("prompt")
    if not isinstance(ids, list):
        return dict(body)
    return {**{k: v for k, v in body.items() if k != "prompt"}, "prompt_ids": ids}


def _as_openai(body: Body) -> Body:
    """The request with token ids as the OpenAI API takes them."""
    ids = {"prompt": body["prompt_ids"]} if "prompt_ids" in body else {}
    return {**{k: v for k, v in body.items() if k != "prompt_ids"}, **ids}


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


async def _decoded(answer: httpx.Response) -> Events:
    decoder = EventDecoder()
    try:
        async for chunk in answer.aiter_raw():
            for event in decoder.push(chunk):
                yield ServerEvent(event.type, json.loads(event.data))
    finally:
        await answer.aclose()


def engine_command(model: Path, socket: Path, args: tuple[str, ...]) -> list[str]:
    """The reference engine of this installation, on a private UNIX socket."""
    serve = [sys.executable, "-m", "engine.cli", "serve", "--model", str(model)]
    return [*serve, "--uds", str(socket), *args]


@asynccontextmanager
async def _upstream(saboteur: Saboteur, model: Path, args: list[str]) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="haikugate-") as scratch:
        socket = Path(scratch) / "engine.sock"
        loaded = saboteur.model(model, Path(scratch))
        command = engine_command(loaded, socket, (*saboteur.engine_args, *args))
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://engine", timeout=PATIENCE_S
        ) as saboteur.upstream:
            saboteur.command = command
            try:
                await saboteur.start()
                yield
            finally:
                await saboteur.stop()


async def _stop_with_engine(saboteur: Saboteur, server: uvicorn.Server) -> None:
    while not server.should_exit and (saboteur.stopping or saboteur.engine.poll() is None):
        await asyncio.sleep(0.1)
    server.should_exit = True


async def serve(saboteur: Saboteur, model: Path, port: int, args: list[str]) -> int:
    """Serve this saboteur on a loopback port until SIGTERM, or until its engine ends."""
    async with _upstream(saboteur, model, args):
        app = Starlette(routes=[Route("/{path:path}", saboteur.handle, methods=METHODS)])
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")
        server = uvicorn.Server(config)
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        watch = asyncio.create_task(_stop_with_engine(saboteur, server))
        await server.serve()
        await watch
    return saboteur.engine.returncode or 0
