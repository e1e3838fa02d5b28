"""Request bodies of the OpenAI-compatible routes, and how they become the native request."""

from typing import Annotated, Any, Literal

from pydantic import Field

from engine.errors import InvalidRequest
from engine.validation import (
    MAX_LOGPROBS,
    Body,
    ExecuteBody,
    MaxTokens,
    Message,
    MinP,
    Prompt,
    RepetitionPenalty,
    Stops,
    StopString,
    Temperature,
    TokenIds,
    TopK,
    TopP,
)

_N_SEEDS = 1 << 64
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False


class TextPart(Body):
    """A part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """A chat message in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> Message:
        """The message with its parts joined."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return Message(role=self.role, content=text)


class ResponseFormat(Body):
    """Only free text is served."""

    type: Literal["text"]


class OpenAIBody(Body):
    """What both routes share; from top_k on the fields are extensions."""

    model: str
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: StopString | Stops | None = None
    seed: Annotated[int, Field(ge=-(_N_SEEDS >> 1), le=_N_SEEDS - 1)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    cache_prompt: bool = False
    analysis: bool = False

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def shared(self) -> dict[str, Any]:
        """The fields of the native request that both routes share; refuses what is not served."""
        for field, neutral in _NEUTRAL.items():
            value = getattr(self, field, None)
            if value and value != neutral:
                raise InvalidRequest(field, f"{field}: only {neutral!r} is supported")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "stop": stop,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": None if self.seed is None else self.seed % _N_SEEDS,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "cache_prompt": self.cache_prompt,
            "analysis": self.analysis,
        }


_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "echo": False,
    "suffix": "",
}


class CompletionBody(OpenAIBody):
    """POST /v1/completions."""

    prompt: Prompt | TokenIds
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    def native(self, job_id: str) -> ExecuteBody:
        """The same request for the native API."""
        text = self.prompt if isinstance(self.prompt, str) else None
        ids = None if isinstance(self.prompt, str) else self.prompt
        return ExecuteBody(
            job_id=job_id,
            max_tokens=self.max_tokens or COMPLETION_MAX_TOKENS,
            logprobs=False if self.logprobs is None else self.logprobs,
            prompt=text,
            prompt_ids=ids,
            **self.shared(),
        )


class ChatBody(OpenAIBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None

    def native(self, job_id: str) -> ExecuteBody:
        """The same request for the native API."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs", "top_logprobs: needs logprobs: true")
        return ExecuteBody(
            job_id=job_id,
            messages=[message.plain() for message in self.messages],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else False,
            **self.shared(),
        )
