"""What every request passes: correlation id, API key, shutdown, and the shape of errors."""

import asyncio
import hmac
import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import EngineError, InternalError, InvalidRequest
from engine.narration import Narrate
from engine.refusals import (
    BodyTooLarge,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    RequestTimeout,
    ShuttingDown,
    Unauthorized,
)
from engine.validation import ExecuteBody

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
RETRY_AFTER_S = 1
_SHUTTING_DOWN = "the engine is shutting down: send the request elsewhere"
_DISCARD_BYTES = 32 << 20
_DISCARD_S = 2.0
_CORRELATION = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_WHILE_DRAINING = frozenset({"/health", "/metrics", "/cancel", "/shutdown"})


def correlation_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The caller's correlation id if it sent one valid one, else a new UUID."""
    given = [value for name, value in headers if name == b"x-correlation-id"]
    if len(given) == 1 and _CORRELATION.fullmatch(given[0]):
        return given[0].decode()
    return str(uuid.uuid4())


def error_fields(error: EngineError) -> dict[str, Any]:
    """The body of an error response."""
    fields: dict[str, Any] = {"code": error.code, "message": error.message}
    if isinstance(error, InvalidRequest):
        fields["field"] = error.field
    return fields | {"retriable": error.retriable}


def openai_error_fields(error: EngineError) -> dict[str, Any]:
    """The body of an error response in OpenAI's shape."""
    kinds = {400: "invalid_request_error", 401: "authentication_error"}
    return {
        "error": {
            "message": error.message,
            "type": kinds.get(error.http_status, "server_error")
            if error.http_status != 404
            else "not_found_error",
            "param": error.field if isinstance(error, InvalidRequest) else None,
            "code": _OPENAI_CODES.get(error.code, error.code),
        }
    }


_OPENAI_CODES = {"UNKNOWN_MODEL": "model_not_found", "UNAUTHORIZED": "invalid_api_key"}


def error_response(error: EngineError, path: str) -> Response:
    """The response for an error; routes below /v1/ speak OpenAI's shape."""
    shape = openai_error_fields if path.startswith("/v1/") else error_fields
    headers = {}
    if isinstance(error, QueueFull | ShuttingDown):
        headers["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, BodyTooLarge | RequestTimeout):
        headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(shape(error), status_code=error.http_status, headers=headers)


class Gateway:
    """Outermost ASGI layer of the engine."""

    def __init__(
        self,
        app: ASGIApp,
        narrate: Narrate,
        api_key: str | None,
        is_draining: Callable[[], bool],
        on_refusal: Callable[[], None],
    ) -> None:
        self._app = app
        self._narrate = narrate
        self._api_key = None if api_key is None else api_key.encode()
        self._is_draining = is_draining
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; whatever goes wrong becomes one readable error."""
        if scope["type"] != "http":
            return
        correlation = correlation_id(scope["headers"])
        scope.setdefault("state", {})["correlation_id"] = correlation
        scope["app"] = self  # makes Starlette's router raise what it would else answer itself
        begun = False

        async def send_correlated(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                header = (b"x-correlation-id", correlation.encode())
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_correlated)
        except (Exception, asyncio.CancelledError) as exc:
            error = self._as_engine_error(exc)
            self._tell(error, correlation, scope)
            if begun:
                return
            response = error_response(error, scope["path"])
            await response(scope, receive, send_correlated)

    def _check(self, scope: Scope) -> None:
        if self._api_key is not None and not self._has_key(scope["headers"]):
            raise Unauthorized("send the API key as 'Authorization: Bearer KEY'")
        if self._is_draining() and scope["path"] not in _WHILE_DRAINING:
            raise ShuttingDown(_SHUTTING_DOWN)

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = b"".join(value for name, value in headers if name == b"authorization")
        wanted = b"Bearer " + (self._api_key or b"")
        return hmac.compare_digest(given, wanted)

    def _as_engine_error(self, exc: BaseException) -> EngineError:
        if isinstance(exc, EngineError):
            return exc
        if isinstance(exc, asyncio.CancelledError):  # nobody but HttpServer.stop cancels
            return ShuttingDown(_SHUTTING_DOWN)
        if isinstance(exc, HTTPException):
            missing = {404: NotFound, 405: MethodNotAllowed}.get(exc.status_code, InternalError)
            return missing(_ROUTING.get(exc.status_code, "the request failed"))
        return InternalError(f"the engine failed with {type(exc).__name__}")

    def _tell(self, error: EngineError, correlation: str, scope: Scope) -> None:
        """Narrate a refusal: its code and field, nothing that the client wrote."""
        self._on_refusal()
        field = error.field if isinstance(error, InvalidRequest) else None
        self._narrate(
            "error",
            f"Refuses a request with {error.http_status} {error.code}",
            action="refuse",
            target="request",
            level="error" if error.http_status >= 500 else "warning",
            correlation_id=correlation,
            error_kind=error.code,
            code=error.code,
            http_status=error.http_status,
            **({"field": field} if field in _KNOWN_FIELDS else {}),
        )


_ROUTING = {
    404: "no such route; see docs/engine-api.md",
    405: "the route does not take this method; see docs/engine-api.md",
}
_KNOWN_FIELDS = frozenset(
    {"body", "ids", "text", "completion_ids", "model", "n", *ExecuteBody.model_fields}
)


async def read_body(request: Request) -> bytes:
    """The request's body; BodyTooLarge over 1 MiB however it is sent, RequestTimeout after 30 s."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_bounded(request)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


async def _read_bounded(request: Request) -> bytes:
    chunks, size_bytes = [], 0
    stream = request.stream()
    async for chunk in stream:
        size_bytes += len(chunk)
        if size_bytes > MAX_BODY_BYTES:
            await _discard(stream)
            raise BodyTooLarge(f"the body is over {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _discard(stream: Any) -> None:
    """Read on for a while: a client that still sends would not see the answer."""
    size_bytes = 0
    try:
        async with asyncio.timeout(_DISCARD_S):
            async for chunk in stream:
                size_bytes += len(chunk)
                if size_bytes > _DISCARD_BYTES:
                    return
    except TimeoutError:
        return


def bad_request_body(correlation: str) -> bytes:
    """The answer to bytes that are not HTTP, as a whole HTTP/1.1 response."""
    error = InvalidRequest("body", "the request is not valid HTTP/1.1")
    body = json.dumps(error_fields(error)).encode()
    return (
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        + f"content-length: {len(body)}\r\nx-correlation-id: {correlation}\r\n\r\n".encode()
        + body
    )
