"""The client of OpenAI-compatible servers: completions, by the same recording transport."""

import uuid
from typing import Any, ClassVar, Final

from harness.clients.behavioural import BehaviouralClient, Fields
from harness.clients.http import answer

CARRIED: Final = ("max_tokens", "temperature", "top_p", "seed", "stop")
"""Request fields of the engine's contract that this API knows by the same name and meaning."""


class OpenAIClient(BehaviouralClient):
    """Speaks /v1/completions, or /v1/chat/completions where a request has `messages`.

    `model` names the model in requests; the first one of /v1/models where it is empty.
    """

    kind: ClassVar[str] = "openai"
    ready_path: ClassVar[str] = "/v1/models"
    model: str = ""

    def request(self, fields: Fields, *, stream: bool) -> tuple[str, Fields]:
        """The route and the body of a completion."""
        chat = "messages" in fields
        sent: dict[str, Any] = {
            "model": self.model or self._first_model(),
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
            "user": str(fields.get("job_id") or uuid.uuid4()),
            **{name: fields[name] for name in CARRIED if name in fields},
            **_logprobs(fields.get("logprobs", False), chat=chat),
        }
        name = "messages" if chat else "prompt"
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return path, {**sent, name: fields.get(name, fields.get("prompt_ids"))}

    def _first_model(self) -> str:
        self.model = str(answer(self.health())["data"][0]["id"])
        return self.model


def _logprobs(wanted: int | bool, *, chat: bool) -> dict[str, Any]:
    if wanted is False:
        return {}
    return {"logprobs": True, "top_logprobs": wanted} if chat else {"logprobs": wanted}
