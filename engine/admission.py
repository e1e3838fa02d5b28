"""From a request body to a generation request that fits the model."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.errors import EngineError, InvalidRequest
from engine.generate import GenerationRequest
from engine.sampler import SamplingParams
from engine.sampling_ranges import check_top_k
from engine.validation import (
    MAX_PROMPT_CHARS,
    MAX_STOP_TOKENS,
    ExecuteBody,
    Message,
)


class PromptTokenizer(Protocol):
    """What admission needs of the tokenizer."""

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]: ...


class PromptTemplate(Protocol):
    """What admission needs of the chat template."""

    @property
    def channels(self) -> tuple[str, ...]: ...

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


@dataclass(frozen=True)
class ModelBounds:
    """What a request must fit."""

    vocab_size: int
    context_length: int
    max_tokens_out: int


@dataclass(frozen=True)
class Admitted:
    """A request that may run; `prompt_sha256` is of the text, the ids or the messages."""

    request: GenerationRequest
    prompt_sha256: str


class Admission:
    """Checks requests against one model and turns text into token ids; any thread may call."""

    def __init__(
        self, tokenizer: PromptTokenizer, template: PromptTemplate, bounds: ModelBounds
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.bounds = bounds

    def admit(self, body: ExecuteBody) -> Admitted:
        """The request of a validated body; InvalidRequest where the model cannot serve it."""
        prompt_ids, digest = self._prompt(body)
        check_top_k(body.top_k, self.bounds.vocab_size)
        self._check_stops(body.stop)
        sampling = SamplingParams(
            seed=secrets.randbits(64) if body.seed is None else body.seed,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            logprobs=None if body.logprobs is False else body.logprobs,
        )
        request = GenerationRequest(
            prompt_ids=tuple(prompt_ids),
            sampling=sampling,
            max_tokens=self._max_tokens(len(prompt_ids), body.max_tokens),
            stop=tuple(body.stop),
            cache_prompt=body.cache_prompt,
            channels=self._channels(body),
        )
        return Admitted(request, digest)

    def _channels(self, body: ExecuteBody) -> tuple[str, ...]:
        """The channels of a chat's answer that the client sees; none where answers have none."""
        answers = self._template.channels if body.messages is not None else ()
        if body.analysis and not answers:
            raise InvalidRequest("analysis", "analysis: only chats with Harmony models have it")
        return tuple(name for name in answers if name == "final" or body.analysis)

    def check_ids(self, field: str, ids: Sequence[int]) -> None:
        """Every id must be one of the vocabulary's."""
        if ids and max(ids) >= self.bounds.vocab_size:
            raise InvalidRequest(field, f"{field}: wanted ids below {self.bounds.vocab_size}")

    def check_length(self, field: str, n_prompt: int, n_completion: int) -> None:
        """Prompt and completion together must fit the context length."""
        if n_prompt + n_completion > self.bounds.context_length:
            raise InvalidRequest(
                field,
                f"{field}: {n_prompt} prompt tokens + {n_completion} = {n_prompt + n_completion}"
                f" exceed the context length of {self.bounds.context_length}: shorten one of them",
            )

    def _prompt(self, body: ExecuteBody) -> tuple[list[int], str]:
        given = [name for name in _SOURCES if getattr(body, name) is not None]
        if len(given) != 1:
            wanted = "exactly one of prompt, prompt_ids, messages is required"
            raise InvalidRequest("prompt", f"prompt: {wanted}, got {len(given)}")
        if body.prompt_ids is not None:
            self.check_ids("prompt_ids", body.prompt_ids)
            return body.prompt_ids, sha256(",".join(map(str, body.prompt_ids)))
        if body.messages is not None:
            return self._chat(body.messages)
        text = body.prompt or ""
        return self._tokenizer.encode(text, add_special=True), sha256(text)

    def _chat(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        n_chars = sum(len(message.content) for message in messages)
        if not 1 <= n_chars <= MAX_PROMPT_CHARS:
            wanted = f"wanted 1 to {MAX_PROMPT_CHARS} characters in all"
            raise InvalidRequest("messages", f"messages: {wanted}, got {n_chars}")
        plain = [message.model_dump() for message in messages]
        try:
            return self._template.encode(plain), sha256(json.dumps(plain))
        except InvalidRequest:
            raise
        except EngineError as error:
            raise InvalidRequest("messages", f"messages: {error.message}") from error

    def _check_stops(self, stops: Sequence[str]) -> None:
        for index, stop in enumerate(stops):
            n_tokens = len(self._tokenizer.encode(stop))
            if n_tokens > MAX_STOP_TOKENS:
                wanted = f"wanted at most {MAX_STOP_TOKENS} tokens, got {n_tokens}"
                raise InvalidRequest("stop", f"stop[{index}]: {wanted}")

    def _max_tokens(self, n_prompt: int, wanted: int | None) -> int:
        """The wanted count; where none is given, as many as allowed and as fit."""
        limit = self.bounds.max_tokens_out
        if wanted is None:
            self.check_length("prompt", n_prompt, 1)
            return min(limit, self.bounds.context_length - n_prompt)
        if wanted > limit:
            raise InvalidRequest("max_tokens", f"max_tokens: wanted a number <= {limit}")
        self.check_length("max_tokens", n_prompt, wanted)
        return wanted


_SOURCES = ("prompt", "prompt_ids", "messages")


def sha256(text: str) -> str:
    """The digest by which a prompt is known in narration."""
    return hashlib.sha256(text.encode()).hexdigest()
