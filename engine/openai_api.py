"""The OpenAI-compatible routes: models, completions, chat completions."""

import time
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.event_stream import EventStream, collect
from engine.openai_schema import ChatBody, CompletionBody
from engine.openai_shape import Kind, Shape
from engine.refusals import UnknownModel
from engine.routes import Service


def openai_routes(service: Service) -> list[Route]:
    """The routes below /v1."""
    openai = _OpenAI(service)
    return [
        Route("/v1/models", openai.models, methods=["GET"]),
        Route("/v1/models/{model:path}", openai.model, methods=["GET"]),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat_completions, methods=["POST"]),
    ]


class _OpenAI:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._card = {
            "id": service.model.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "haikugate",
        }

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card]})

    async def model(self, request: Request) -> Response:
        self._require_model(request.path_params["model"])
        return JSONResponse(self._card)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, "completion", CompletionBody)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, "chat", ChatBody)

    async def _answer(
        self, request: Request, kind: Kind, schema: type[CompletionBody] | type[ChatBody]
    ) -> Response:
        service = self._service
        body: CompletionBody | ChatBody = await service.body(request, schema)
        self._require_model(body.model)
        job_id = uuid.uuid4().hex
        admitted = await service.aside(service.admission.admit, body.native(job_id))
        token_bytes = service.model.tokenizer.token_bytes
        shape = Shape(kind, job_id, service.model.name, token_bytes, body.wants_usage)
        job, channel = service.submit(request, admitted, job_id)

        def abandon(reason: str) -> None:
            service.worker.abandon(job, reason)

        if body.stream:
            return EventStream(channel, shape.chunk, abandon)
        return JSONResponse(shape.whole(await collect(channel, request.receive, abandon)))

    def _require_model(self, name: str) -> None:
        if name != self._service.model.name:
            wanted = f"model: only {self._service.model.name!r} is served here"
            raise UnknownModel(wanted)
