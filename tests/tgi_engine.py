"""An engine with the API of text-generation-inference, before a reference engine of its own.

Run as `python -m tests.tgi_engine --model PATH --port N`: /generate, /generate_stream, /health.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from harness.saboteurs.proxy import Saboteur, serve

NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "seed": "seed"}
REASONS = {"length": "length", "stop": "eos_token", "stop_sequence": "stop_sequence"}


class TGIFace(Saboteur):
    """The engine's /execute in the words of another API."""

    async def handle(self, request: Request) -> Response:
        if not request.url.path.startswith("/generate"):
            return await super().handle(request)
        asked = json.loads(await request.body())
        frames = self.frames({**native(asked), "job_id": f"job {self.n_jobs}"})
        self.n_jobs += 1
        if request.url.path == "/generate_stream":
            encoded = (f"data:{json.dumps(frame)}\n\n".encode() async for frame in frames)
            return StreamingResponse(encoded, media_type="text/event-stream")
        return JSONResponse([frame async for frame in frames][-1])

    async def frames(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """A frame for each token; the last one has the whole text and the details."""
        held: dict[str, Any] | None = None
        text, n_in, count = "", 0, 0
        async for event in self.stream(body):
            if event.type == "started":
                n_in = event.body["prompt_tokens"]
            elif event.type == "token":
                if held is not None:
                    yield held
                text, count = text + event.body["t"], count + 1
                token = {"id": event.body["id"], "text": event.body["t"], "special": False}
                held = {"token": token, "generated_text": None, "details": None}
            elif event.type == "end":
                reason = REASONS[event.body["finish_reason"]]
                ended = {"finish_reason": reason, "generated_tokens": count, "input_length": n_in}
                yield {**(held or {}), "generated_text": text, "details": ended}


def native(asked: dict[str, Any]) -> dict[str, Any]:
    """The request in fields of the engine's contract."""
    sent = asked["parameters"]
    named = {ours: sent[theirs] for theirs, ours in NAMES.items() if theirs in sent}
    greedy = {"temperature": 0.0, "stop": sent.get("stop", [])}
    return {**greedy, **named, "prompt": asked["inputs"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    raise SystemExit(asyncio.run(serve(TGIFace(), options.model, options.port, [])))


if __name__ == "__main__":
    main()
