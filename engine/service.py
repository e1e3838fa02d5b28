"""The life of a serving process: device, model, HTTP, ready, shutdown."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from starlette.routing import Router

from engine.admission import Admission, ModelBounds
from engine.backends import LoadOptions
from engine.binding import allow_many_files, bind_tcp, bind_unix, listen
from engine.errors import EngineError, InsufficientMemory, InternalError
from engine.gateway import Gateway
from engine.load_progress import LoadProgress
from engine.loading import FileDigest, LoadedModel, load_model
from engine.narration import Narrator
from engine.routes import Service, native_routes
from engine.server import HttpServer
from engine.text_threads import TextThreads
from engine.worker import Worker

DRAIN_S = 3.0
_CANCEL_S = 1.0
_FLUSH_S = 0.3
_DIGEST_WAIT_S = 2.0
_SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True)
class ServeOptions:
    """The options of `haikugate-engine serve`."""

    model: Path
    load: LoadOptions = field(default_factory=LoadOptions)
    host: str = "127.0.0.1"
    port: int = 8080
    uds: Path | None = None
    worker_id: str = ""
    callback_url: str | None = None
    max_tokens_out: int = 2048
    inference_timeout_s: float = 300.0
    residency_check_s: float = 60.0
    api_key: str | None = None
    log_format: str = "json"


class _Terminated(BaseException):
    """SIGTERM or SIGINT came before the engine was ready."""


def serve(options: ServeOptions) -> int:
    """Serve until told to stop; the exit code."""
    options = replace(options, worker_id=options.worker_id or str(uuid.uuid4()))
    shared = {
        "worker_id": options.worker_id,
        "model_ref": options.model.name,
        "device": options.load.device,
    }
    narrate = Narrator(options.log_format, shared)
    process = _Process(options, narrate)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_terminated)
    try:
        return _exit_code(process)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        process.release()


def _exit_code(process: "_Process") -> int:
    try:
        return process.run()
    except _Terminated:
        process.tell_shutdown("a signal came during start")
        return 0
    except EngineError as error:
        return process.tell_start_failure(error)
    except Exception as error:
        return process.tell_start_failure(InternalError(f"the start failed: {error!r}"))


def _raise_terminated(_number: int, _frame: object) -> None:
    raise _Terminated


class _Process:
    """What `serve` holds, so that it is released on every way out."""

    def __init__(self, options: ServeOptions, narrate: Narrator) -> None:
        self._options = options
        self._narrate = narrate
        self._correlation_id = str(uuid.uuid4())
        self._begun_s = time.monotonic()
        self._listener: socket.socket | None = None
        self._model: LoadedModel | None = None
        self._digest = FileDigest(options.model)
        self._shutdown_reason = ""
        self.at_work = False

    def run(self) -> int:
        """Bind, load, serve."""
        _quieten_libraries()
        allow_many_files()
        self._tell("startup", "Starts the engine", "start", "engine", pid=os.getpid())
        options = self._options
        uds = options.uds
        self._listener = bind_unix(uds) if uds else bind_tcp(options.host, options.port)
        self._model = self._load()
        listen(self._listener)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        asyncio.run(self._serve(self._model, self._listener))
        return 0

    def release(self) -> None:
        """Free the model, the socket and its file; the exit frees what a thread still reads."""
        if self._model is not None and not self.at_work:
            self._model.close()
        if self._listener is not None:
            self._listener.close()
            if self._options.uds is not None:
                self._options.uds.unlink(missing_ok=True)

    def tell_start_failure(self, error: EngineError) -> int:
        """One ERROR event with all that is known; exit code 1."""
        needs: dict[str, Any] = {}
        if isinstance(error, InsufficientMemory):
            needs["required_bytes"] = error.required_bytes
            needs["available_bytes"] = error.available_bytes
        self._tell(
            "error",
            f"Fails to start: {error.message}",
            "start",
            "engine",
            level="error",
            error_kind=error.code,
            code=error.code,
            message=error.message,
            model_path=str(self._options.model),
            **needs,
        )
        return 1

    def tell_shutdown(self, reason: str) -> None:
        """The shutdown event."""
        uptime_ms = (time.monotonic() - self._begun_s) * 1e3
        human = f"Shuts down: {reason}"
        self._tell("shutdown", human, "stop", "engine", reason=reason, duration_ms=round(uptime_ms))

    def _load(self) -> LoadedModel:
        options = self._options
        begun = time.monotonic()
        self._digest.start()
        self._tell("model_load_start", "Loads the model", "load", "model")
        is_human = options.log_format == "human"
        with LoadProgress(self._tell_progress, for_person=is_human) as progress:
            model = load_model(options.model, options.load, progress)
        memory = model.runtime.memory()
        self._tell(
            "model_load_complete",
            f"Completes the load of {model.name}",
            "load",
            "model",
            duration_ms=round((time.monotonic() - begun) * 1e3, 3),
            weights_bytes=memory.weights_bytes,
            vram_bytes=memory.total_bytes,
        )
        return model

    def _tell_progress(self, percent: int, loaded: int, total: int) -> None:
        self._tell(
            "model_load_progress",
            f"Loads the model: {percent} % are on the device",
            "load",
            "model",
            percent=percent,
            bytes_loaded=loaded,
            bytes_total=total,
        )

    def _tell(self, event: str, human: str, action: str, target: str, **numbers: Any) -> None:
        self._narrate(
            event,
            human,
            action=action,
            target=target,
            correlation_id=self._correlation_id,
            **numbers,
        )

    async def _serve(self, model: LoadedModel, listener: socket.socket) -> None:
        options = self._options
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._tell_loop_error)
        stop = asyncio.Event()
        self._stop_on_signals(loop, stop)
        worker = Worker(
            model.runtime,
            model.tokenizer,
            self._narrate,
            inference_timeout_s=options.inference_timeout_s,
            residency_check_s=options.residency_check_s,
        )
        threads = TextThreads()
        gateway = Gateway(
            self._app(model, worker, threads, stop),
            self._narrate,
            options.api_key,
            lambda: worker.queue.closed,
            worker.metrics.refused,
        )
        server = HttpServer(gateway)
        worker.start()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        announcing = asyncio.create_task(self._announce(server, listener))
        try:
            await stop.wait()
        finally:
            announcing.cancel()
            await self._stop(worker, server)
            await serving
            self.at_work = not threads.close() or worker.is_alive()
        self.tell_shutdown(self._shutdown_reason)

    def _app(
        self, model: LoadedModel, worker: Worker, threads: TextThreads, stop: asyncio.Event
    ) -> Router:
        from engine.openai_api import openai_routes

        runtime = model.runtime
        bounds = ModelBounds(
            runtime.vocab_size, runtime.context_length, self._options.max_tokens_out
        )
        fixed = _identity(model, self._options.worker_id)
        service = Service(
            model=model,
            worker=worker,
            admission=Admission(model.tokenizer, model.chat, bounds),
            threads=threads,
            identity=lambda: {**fixed, "model_sha256": self._digest.sha256},
            request_shutdown=lambda: self._request_stop(stop, "POST /shutdown"),
        )
        return Router([*native_routes(service), *openai_routes(service)], redirect_slashes=False)

    async def _announce(self, server: HttpServer, listener: socket.socket) -> None:
        digest_until = time.monotonic() + _DIGEST_WAIT_S
        while not server.started or (self._digest.is_alive() and time.monotonic() < digest_until):
            await asyncio.sleep(0.001)
        address = _address(listener)
        start_ms = round((time.monotonic() - self._begun_s) * 1e3, 3)
        self._tell("ready", "Is ready", "serve", "engine", duration_ms=start_ms, **address)
        if self._options.callback_url is not None:
            arguments = (self._options.callback_url, address)
            threading.Thread(target=self._call_back, args=arguments, daemon=True).start()

    def _call_back(self, url: str, address: dict[str, Any]) -> None:
        """Deliver the ready callback, in a thread of its own that a shutdown does not wait for."""
        from engine.callback import announce_ready

        assert self._model is not None
        ready = {
            "worker_id": self._options.worker_id,
            "model": self._model.name,
            "vram_bytes": self._model.runtime.memory().total_bytes,
            **address,
        }
        problem = announce_ready(url, ready)
        if problem is not None:
            self._tell_callback_failure(problem)

    def _tell_callback_failure(self, problem: str) -> None:
        self._tell(
            "error",
            "Cannot deliver the ready callback",
            "announce",
            "callback",
            level="warning",
            error_kind="CALLBACK_FAILED",
            message=problem,
        )

    def _stop_on_signals(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Not by the loop's own handlers: with these a second signal kills once it is closed."""

        def request(number: int, _frame: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                name = signal.Signals(number).name
                loop.call_soon_threadsafe(self._request_stop, stop, name)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request)

    def _request_stop(self, stop: asyncio.Event, reason: str) -> None:
        self._shutdown_reason = self._shutdown_reason or reason
        stop.set()

    async def _stop(self, worker: Worker, server: HttpServer) -> None:
        """Let the running job finish, cancel it where it takes too long; close every connection."""
        worker.drain()
        if not await asyncio.to_thread(worker.queue.wait_idle, DRAIN_S):
            worker.queue.cancel_running("the engine is shutting down")
        await asyncio.to_thread(worker.join, _CANCEL_S)
        flush_until = time.monotonic() + _FLUSH_S
        while server.n_tasks and time.monotonic() < flush_until:
            await asyncio.sleep(0.005)
        server.stop()

    def _tell_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        kind = type(context.get("exception")).__name__
        self._tell(
            "error",
            f"Meets {kind} outside a request",
            "serve",
            "connection",
            level="error",
            error_kind="INTERNAL",
            code="INTERNAL",
        )


def _identity(model: LoadedModel, worker_id: str) -> dict[str, Any]:
    """The fields of /health that never change."""
    facts = model.runtime.device_facts()
    device: dict[str, Any] = {
        name: facts[name] for name in ("sm", "cuda_runtime_version") if name in facts
    }
    return {
        "model": model.name,
        "quant_kind": model.quant_kind,
        "quant_bytes": model.bytes_by_type,
        "tokenizer_kind": model.tokenizer.kind,
        "vocab_size": model.runtime.vocab_size,
        "context_length": model.runtime.context_length,
        "kv_dtype": model.runtime.kv_dtype,
        "adapter": model.adapter,
        "architecture": model.config.architecture,
        "device": model.runtime.device,
        "backend": model.backend,
        "worker_id": worker_id,
        "version": engine_version(),
        **device,
    }


def engine_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("haikugate")
    except PackageNotFoundError:
        return "0+source"


def _address(listener: socket.socket) -> dict[str, Any]:
    name = listener.getsockname()
    return {"uds": name} if isinstance(name, str) else {"host": name[0], "port": name[1]}


def _quieten_libraries() -> None:
    """Nothing but narration may write: a library's log line could quote a request."""
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger().setLevel(logging.CRITICAL + 1)
