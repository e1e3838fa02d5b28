"""A job's events in OpenAI's shapes: whole answers, stream chunks, logprobs, usage."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.event_stream import sse
from engine.gateway import openai_error_fields
from engine.generate import End, Event, Failed, Started, Token

Kind = Literal["completion", "chat"]
DONE = b"data: [DONE]\n\n"
_FINISH = {"stop": "stop", "length": "length", "stop_sequence": "stop"}
_PREFIX = {"completion": "cmpl-", "chat": "chatcmpl-"}
_WHOLE = {"completion": "text_completion", "chat": "chat.completion"}
_CHUNK = {"completion": "text_completion", "chat": "chat.completion.chunk"}


@dataclass
class Shape:
    """One answer in the making; `token_bytes` gives a token id's own bytes."""

    kind: Kind
    job_id: str
    model: str
    token_bytes: Callable[[int], bytes]
    wants_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    text_offset: int = 0

    def chunk(self, event: Event) -> bytes:
        """The server-sent events of one event of the job."""
        match event:
            case Started():
                self._count(event)
                return self._role_chunk()
            case Token():
                self.completion_tokens += 1
                return self._token_chunk(event)
            case End():
                finish = self._chunk([self._delta({}, _FINISH[event.finish_reason])])
                usage = self._chunk([], usage=self.usage()) if self.wants_usage else b""
                return finish + usage + DONE
            case Failed(error):
                return sse(None, openai_error_fields(error))
            case _:
                return b""

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The answer to a request that does not stream; a failed job raises its error."""
        tokens = [event for event in events if isinstance(event, Token)]
        ending = events[-1]
        if isinstance(ending, Failed):
            raise ending.error
        assert isinstance(ending, End)
        for event in events:
            if isinstance(event, Started):
                self._count(event)
        self.completion_tokens = len(tokens)
        text = "".join(token.text for token in tokens)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": _FINISH[ending.finish_reason],
            "logprobs": self._logprobs(tokens),
        }
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return {**self._head(_WHOLE[self.kind]), "choices": [choice], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Token counts; every generated token counts, the one that ends the text too."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def _count(self, started: Started) -> None:
        self.prompt_tokens, self.cached_tokens = started.prompt_tokens, started.cached_tokens

    def _head(self, kind: str) -> dict[str, Any]:
        identity = _PREFIX[self.kind] + self.job_id
        return {"id": identity, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": None} if self.wants_usage else {}
        return sse(None, {**self._head(_CHUNK[self.kind]), "choices": choices, **usage, **more})

    def _role_chunk(self) -> bytes:
        if self.kind == "completion":
            return b""
        return self._chunk([self._delta({"role": "assistant", "content": ""}, None)])

    def _token_chunk(self, token: Token) -> bytes:
        if not token.text and token.top is None:
            return b""
        content = {"content": token.text} if self.kind == "chat" else {"text": token.text}
        return self._chunk([self._delta(content, None, self._logprobs([token]))])

    def _delta(
        self, content: dict[str, Any], finish: str | None, logprobs: Any = None
    ) -> dict[str, Any]:
        payload = {"delta": content} if self.kind == "chat" else {"text": "", **content}
        return {"index": 0, **payload, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens or tokens[0].top is None:
            return None
        if self.kind == "chat":
            return {"content": [self._chat_logprob(token) for token in tokens], "refusal": None}
        return self._completion_logprobs(tokens)

    def _chat_logprob(self, token: Token) -> dict[str, Any]:
        alternatives = [self._named(i, logprob) for i, logprob in token.top or ()]
        named = {**self._named(token.token_id, token.logprob), "token_id": token.token_id}
        return {**named, "top_logprobs": alternatives}

    def _named(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        content = self.token_bytes(token_id)
        return {"token": content.decode(errors="replace"), "logprob": logprob, "bytes": [*content]}

    def _completion_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self.text_offset)
            self.text_offset += len(token.text)
        return {
            "tokens": [self._escaped(token.token_id) for token in tokens],
            "token_ids": [token.token_id for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._escaped(i): logprob for i, logprob in token.top or ()} for token in tokens
            ],
            "text_offset": offsets,
        }

    def _escaped(self, token_id: int) -> str:
        """A token's text; bytes that are no whole character are spelled out, so no two collide."""
        content = self.token_bytes(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
