"""A completion as judges read it, whatever API carried it, and what reads an API into it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.judges.rule import Unseen, need
from harness.observation import Exchange, Json

UNKNOWN_ID: Final = -1
"""The id of a token that its API gives no id for."""


@dataclass(frozen=True)
class TokenEvent:
    """One token event, or a piece of text where an API tells no tokens apart.

    `arrival_ns` is when its last byte arrived. `raw` holds `id` (what tells the token apart: its id
    or its spelling) and, where logprobs were asked for, `logprob` and `top`, best first.
    """

    text: str
    token_id: int
    arrival_ns: int
    raw: Mapping[str, Json]


@dataclass(frozen=True)
class Stream:
    """A whole stream; exactly one of `end` and `error` is there, unless the client left first.

    `started` and `metrics` are the native API's; `usage` is another API's count of tokens.
    """

    started: Mapping[str, Json] | None
    tokens: tuple[TokenEvent, ...]
    metrics: Mapping[str, Json] | None
    end: Mapping[str, Json] | None
    error: Mapping[str, Json] | None
    terminal_ns: int | None
    usage: Mapping[str, Json] | None = None

    @property
    def text(self) -> str:
        """The completion."""
        return "".join(token.text for token in self.tokens)

    @property
    def has_ids(self) -> bool:
        """Whether every token's id is known."""
        return bool(self.tokens) and all(token.token_id != UNKNOWN_ID for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        """The completion's token ids; Unseen if the API does not tell them."""
        if self.tokens and not self.has_ids:
            raise Unseen("the API gave no token ids: name the model's with --tokenizer FILE")
        return [token.token_id for token in self.tokens]

    @property
    def said(self) -> list[int] | list[str]:
        """What tells completions apart: token ids, or the characters where there are none."""
        return self.ids if self.has_ids else list(self.text)

    @property
    def tokens_out(self) -> int:
        """How many tokens were generated: one an event, or what the API's usage says."""
        return len(self.tokens) if self.usage is None else int(self.usage["completion_tokens"])

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has, as the engine says."""
        table = self.started if self.usage is None else self.usage
        need(table is not None, "the stream does not say how many tokens its prompt has")
        return int((table or {})["prompt_tokens"])


def spelled_ids(stream: Stream, vocabulary: Mapping[str, int]) -> list[int]:
    """The token ids; where the API gives spellings alone, by a named tokenizer's vocabulary."""
    if stream.has_ids or not vocabulary:
        return stream.ids
    pieces = [str(token.raw["id"]) for token in stream.tokens]
    unknown = [piece for piece in pieces if piece not in vocabulary]
    if unknown:
        raise Unseen(f"the tokenizer has no single token {unknown[0]!r:.40}")
    return [vocabulary[piece] for piece in pieces]


@dataclass(frozen=True)
class Whole:
    """An answer in one piece."""

    text: str
    tokens_out: int


@dataclass(frozen=True)
class Dialect:
    """How one route of an API is read; each function raises Broken for what its API forbids.

    asked   the request as fields of the engine's contract (docs/engine-api.md)
    stream  a recorded stream
    whole   an answer in one piece
    """

    asked: Callable[[Exchange], Mapping[str, Any]]
    stream: Callable[[Exchange], Stream]
    whole: Callable[[Exchange], Whole]
