"""Gate 1: the official `openai` client, unchanged, through the recording transport."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.clients.http import Http
from harness.launch import RunningEngine
from harness.observation import Exchange, Json, Observe
from harness.transport import Endpoint

STORY = "Once upon a time, in a small village by the sea, there lived"
SAME: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "seed": 1}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to three."}], **SAME}
COMPLETION: dict[str, Any] = {"prompt": STORY, **SAME}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.check("G1-API-OPENAI")
def test_official_client(engine: RunningEngine, observe: Observe) -> None:
    import openai

    wire: list[Exchange] = []
    http = Http(Endpoint(engine.base_url, engine.uds), on_exchange=wire.append)
    recording: Any = http.httpx_client()  # the client's types name another package's class
    client = openai.OpenAI(
        base_url=f"{engine.base_url}/v1",
        api_key="unused",
        http_client=recording,
        max_retries=0,
    )
    model = client.models.list().data[0].id
    completions, chat = client.completions.create, client.chat.completions.create
    observe(
        client_version=openai.__version__,
        model=model,
        completion=completions(model=model, **COMPLETION).model_dump(),
        completion_stream=chunks(completions(model=model, **COMPLETION, **STREAM)),
        chat=chat(model=model, **CHAT).model_dump(),
        chat_stream=chunks(chat(model=model, **CHAT, **STREAM)),
        refused=raised(lambda: completions(model=model, **{**COMPLETION, "temperature": 9})),
        unknown=raised(lambda: completions(model="no-such-model", **COMPLETION)),
        raw=raw(engine, model),
        wire=wire,
    )


def chunks(stream: Any) -> list[Json]:
    """What the client made of a stream."""
    return [chunk.model_dump() for chunk in stream]


def raised(call: Callable[[], Any]) -> Json:
    """The error that the client raised, by its class, status and fields; None if it raised none."""
    import openai

    try:
        call()
    except openai.APIStatusError as error:
        return {
            "kind": type(error).__name__,
            "status": error.status_code,
            "message": error.message,
            "param": error.param,
            "body": error.body,
        }
    return None


def raw(engine: RunningEngine, model: str) -> Exchange:
    """The completion once more, as bytes: what the client read is held against it."""
    sent = json.dumps({"model": model, **COMPLETION}).encode()
    return engine.client.raw("POST", "/v1/completions", sent)
