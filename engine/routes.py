"""The native routes: execute, cancel, score, tokenize, detokenize, health, metrics, shutdown."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.admission import Admission, Admitted, sha256
from engine.channel import Channel
from engine.errors import EngineError
from engine.event_stream import EventStream, collect, sse
from engine.gateway import read_body
from engine.generate import End, Event, Failed, Metrics, Scored, Started, Token
from engine.jobs import GenerationJob, Job, JobLabel, ScoringJob
from engine.loading import LoadedModel
from engine.metrics import CONTENT_TYPE
from engine.refusals import UnknownJob
from engine.text_threads import TextThreads
from engine.validation import (
    B,
    CancelBody,
    DetokenizeBody,
    ExecuteBody,
    ScoreBody,
    TokenizeBody,
    parse_body,
)
from engine.worker import Worker

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """What the routes work with; `identity` gives the fields of /health that do not change."""

    model: LoadedModel
    worker: Worker
    admission: Admission
    threads: TextThreads
    identity: Callable[[], dict[str, Any]]
    request_shutdown: Callable[[], None]

    async def body(self, request: Request, kind: type[B]) -> B:
        """The request's body as `kind`."""
        return parse_body(kind, await read_body(request))

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work that may take milliseconds beside the event loop."""
        return await self.threads.run(work, *arguments)

    def submit(
        self, request: Request, admitted: Admitted, job_id: str | None
    ) -> tuple[Job, Channel]:
        """Queue a completion."""
        channel = Channel(asyncio.get_running_loop())
        label = JobLabel(correlation_of(request), job_id, admitted.prompt_sha256)
        job = GenerationJob(label, channel, admitted.request, self.worker.metrics)
        self.worker.queue.submit(job)
        return job, channel


def correlation_of(request: Request) -> str:
    """The correlation id that the gateway gave this request."""
    return str(request.scope["state"]["correlation_id"])


def native_routes(service: Service) -> list[Route]:
    """The routes of the native API."""
    native = _Native(service)
    return [
        Route("/execute", native.execute, methods=["POST"]),
        Route("/cancel", native.cancel, methods=["POST"]),
        Route("/score", native.score, methods=["POST"]),
        Route("/tokenize", native.tokenize, methods=["POST"]),
        Route("/detokenize", native.detokenize, methods=["POST"]),
        Route("/health", native.health, methods=["GET"]),
        Route("/metrics", native.metrics, methods=["GET"]),
        Route("/shutdown", native.shutdown, methods=["POST"]),
    ]


class _Native:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def execute(self, request: Request) -> Response:
        service = self._service
        body = await service.body(request, ExecuteBody)
        admitted = await service.aside(service.admission.admit, body)
        job, channel = service.submit(request, admitted, body.job_id)
        encode = _Encoder(service.model.name, body.job_id)
        return EventStream(channel, encode, lambda reason: service.worker.abandon(job, reason))

    async def cancel(self, request: Request) -> Response:
        body = await self._service.body(request, CancelBody)
        if not self._service.worker.cancel(body.job_id, "a client asked for it"):
            raise UnknownJob("job_id: this process has never seen such a job")
        return JSONResponse({"job_id": body.job_id}, status_code=202)

    async def score(self, request: Request) -> Response:
        body = await self._service.body(request, ScoreBody)
        admission = self._service.admission
        admission.check_ids("prompt_ids", body.prompt_ids)
        admission.check_ids("completion_ids", body.completion_ids)
        n_prompt, n_completion = len(body.prompt_ids), len(body.completion_ids)
        admission.check_length("completion_ids", n_prompt, n_completion)
        channel = Channel(asyncio.get_running_loop())
        digest = sha256(",".join(map(str, body.prompt_ids)))
        label = JobLabel(correlation_of(request), None, digest)
        job = ScoringJob(label, channel, body.prompt_ids, body.completion_ids)
        worker = self._service.worker
        worker.queue.submit(job)
        events = await collect(channel, request.receive, lambda why: worker.abandon(job, why))
        return _scores(events[-1])

    async def tokenize(self, request: Request) -> Response:
        body = await self._service.body(request, TokenizeBody)
        ids = await self._service.aside(self._encode, body.text, body.add_special)
        return JSONResponse({"ids": ids})

    async def detokenize(self, request: Request) -> Response:
        body = await self._service.body(request, DetokenizeBody)
        self._service.admission.check_ids("ids", body.ids)
        decode = self._service.model.tokenizer.decode
        text, dropped_bytes = await self._service.aside(decode, body.ids)
        return JSONResponse({"text": text, "dropped_bytes": dropped_bytes})

    async def health(self, _request: Request) -> Response:
        service = self._service
        uptime_s = round(service.worker.metrics.uptime_s, 3)
        moment = service.worker.vitals.snapshot()
        return JSONResponse({**moment, **service.identity(), "uptime_seconds": uptime_s})

    async def metrics(self, _request: Request) -> Response:
        worker = self._service.worker
        content = worker.metrics.exposition(worker.vitals.memory.total_bytes)
        return Response(content, media_type=CONTENT_TYPE)

    async def shutdown(self, _request: Request) -> Response:
        self._service.request_shutdown()
        return JSONResponse({"status": "shutting down"}, status_code=202)

    def _encode(self, text: str, add_special: bool) -> list[int]:
        return self._service.model.tokenizer.encode(text, add_special=add_special)


def _scores(event: Event) -> Response:
    if isinstance(event, Failed):
        raise event.error
    assert isinstance(event, Scored)
    scores = [
        {
            "token_id": score.token_id,
            "logprob": score.logprob,
            "rank": score.rank,
            "argmax_id": score.argmax_id,
            "margin": score.margin,
        }
        for score in event.scores
    ]
    return JSONResponse({"scores": scores})


class _Encoder:
    """A job's events as the native API's server-sent events."""

    def __init__(self, model: str, job_id: str) -> None:
        self._model = model
        self._job_id = job_id

    def __call__(self, event: Event) -> bytes:
        name, fields = self._named(event)
        return sse(name, fields)

    def _named(self, event: Event) -> tuple[str, dict[str, Any]]:
        match event:
            case Token():
                return "token", token_fields(event)
            case Started():
                return "started", self._started(event)
            case Metrics():
                return "metrics", _rounded(vars(event))
            case End():
                return "end", _rounded(vars(event))
            case Failed(error):
                return "error", failure_fields(error)
            case _:
                raise TypeError(f"a completion has no {type(event).__name__} event")

    def _started(self, event: Started) -> dict[str, Any]:
        return {
            "job_id": self._job_id,
            "model": self._model,
            "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seed": event.seed,
            "prompt_tokens": event.prompt_tokens,
            "cached_tokens": event.cached_tokens,
        }


def token_fields(token: Token) -> dict[str, Any]:
    """The payload of a token event; `top` lists {id, logprob}, best first."""
    fields: dict[str, Any] = {"t": token.text, "i": token.index, "id": token.token_id}
    if token.top is not None:
        fields["logprob"] = token.logprob
        fields["top"] = [{"id": token_id, "logprob": logprob} for token_id, logprob in token.top]
    return fields


def failure_fields(error: EngineError) -> dict[str, Any]:
    """The payload of an error event."""
    return {"code": error.code, "message": error.message, "retriable": error.retriable}


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in fields.items()}
