"""Measurement backend `openai`: any OpenAI-compatible server, over HTTP."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from harness.clients.openai import OpenAIClient
from harness.errors import LaunchError, UsageError
from harness.observation import Exchange
from harness.sse import decode_events
from harness.transport import Endpoint


@dataclass(frozen=True)
class Generation:
    """One request; token times are those of the chunks that carried text."""

    prompt_tokens: int
    completion_tokens: int
    sent_ns: int
    token_ns: tuple[int, ...]


class OpenAIBackend:
    """Option `url` names the server; a key comes from the environment's OPENAI_API_KEY."""

    takes_files = False

    def load(self, model: str, options: Mapping[str, str]) -> None:
        """Remember where the server is; UsageError without option `url`."""
        if "url" not in options:
            raise UsageError(
                "backend openai: wanted its url, e.g. --option options.url=http://127.0.0.1:8000"
            )
        endpoint = Endpoint(options["url"], api_key=os.environ.get("OPENAI_API_KEY"))
        self._client = OpenAIClient(endpoint)
        self._client.model = model

    def generate(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int
    ) -> Generation:
        """One streamed completion; LaunchError if the server does not give one."""
        seen = self._client.execute(
            prompt=prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        if seen.status != 200 or seen.error is not None:
            said = seen.error or seen.body[:200].decode("utf-8", errors="replace")
            raise LaunchError(f"{seen.path}: wanted a stream, got {seen.status}: {said}")
        return _generation(seen)

    def flops(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Unknown: a server does not tell its architecture."""
        return

    def close(self) -> None:
        """Nothing is held."""


def _generation(seen: Exchange) -> Generation:
    usage: Mapping[str, int] = {}
    stamps = []
    for timed in decode_events(seen.chunks, strict=False):
        if timed.event.data == "[DONE]":
            continue
        chunk = json.loads(timed.event.data)
        usage = chunk.get("usage") or usage
        if any(choice.get("text") for choice in chunk.get("choices", ())):
            stamps.append(timed.arrival_ns)
    return Generation(
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", len(stamps)),
        sent_ns=seen.sent_ns,
        token_ns=tuple(stamps),
    )
