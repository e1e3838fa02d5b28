"""The client of OpenAI-compatible servers: completions, by the same recording transport."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from harness.clients.http import Http, LiveExchange, OnEvent, answer, json_body
from harness.errors import UsageError
from harness.observation import Exchange
from harness.transport import DEFAULT_LIMITS, Endpoint, Headers, TransportLimits

READY_LIMITS = TransportLimits(total_s=2.0, connect_s=1.0, wire_bytes=1 << 20)

CARRIED: Final = ("max_tokens", "temperature", "top_p", "seed", "stop")
"""Request fields of the engine's contract that this API knows by the same name and meaning."""


class OpenAIClient:
    """Speaks /v1/completions, or /v1/chat/completions where a request has `messages`.

    `model` names the model in requests; the first one of /v1/models where it is not given.
    """

    kind: ClassVar[str] = "openai"

    def __init__(
        self,
        endpoint: Endpoint,
        limits: TransportLimits = DEFAULT_LIMITS,
        on_exchange: Callable[[Exchange], None] | None = None,
        model: str = "",
    ) -> None:
        self.http = Http(endpoint, limits, on_exchange)
        self._model = model

    def is_ready(self) -> bool:
        """Whether /v1/models answers 200."""
        return self.raw("GET", "/v1/models", limits=READY_LIMITS).status == 200

    def execute(self, *, headers: Headers = (), **fields: Any) -> Exchange:
        """One streamed completion, read to its end."""
        path, body = self._request(fields)
        return self.http.exchange("POST", path, body, headers)

    def start(
        self, *, on_event: OnEvent | None = None, headers: Headers = (), **fields: Any
    ) -> LiveExchange:
        """One streamed completion in the background."""
        path, body = self._request(fields)
        return self.http.open("POST", path, body, headers, on_event)

    def health(self) -> Exchange:
        """GET /v1/models: what this API has in the place of a health route."""
        return self.raw("GET", "/v1/models")

    def cancel(self, job_id: str) -> Exchange:
        """UsageError: this API cancels by disconnecting."""
        raise _unknown("/cancel")

    def metrics(self) -> Exchange:
        """UsageError: this API has no metrics."""
        raise _unknown("/metrics")

    def tokenize(self, text: str, *, add_special: bool = False) -> Exchange:
        """UsageError: this API does not tokenize."""
        raise _unknown("/tokenize")

    def detokenize(self, ids: Sequence[int]) -> Exchange:
        """UsageError: this API does not detokenize."""
        raise _unknown("/detokenize")

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Exchange:
        """UsageError: this API does not score given tokens."""
        raise _unknown("/score")

    def shutdown(self) -> Exchange:
        """UsageError: this API has no shutdown."""
        raise _unknown("/shutdown")

    def raw(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        limits: TransportLimits | None = None,
    ) -> Exchange:
        """Any request."""
        return self.http.exchange(method, path, body, headers, limits)

    def _request(self, fields: dict[str, Any]) -> tuple[str, bytes]:
        chat = "messages" in fields
        asked: dict[str, Any] = {
            "model": self._model or self._first_model(),
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": str(fields.get("job_id") or uuid.uuid4()),
            **{name: fields[name] for name in CARRIED if name in fields},
            **_logprobs(fields.get("logprobs", False), chat=chat),
        }
        name = "messages" if chat else "prompt"
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return path, json_body({**asked, name: fields.get(name, fields.get("prompt_ids"))})

    def _first_model(self) -> str:
        self._model = str(answer(self.health())["data"][0]["id"])
        return self._model


def _logprobs(wanted: int | bool, *, chat: bool) -> dict[str, Any]:
    if wanted is False:
        return {}
    return {"logprobs": True, "top_logprobs": wanted} if chat else {"logprobs": wanted}


def _unknown(route: str) -> UsageError:
    return UsageError(f"engine kind openai: this API has no {route}")
