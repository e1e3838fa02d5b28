"""Re-scoring: what a reference engine's scores say about the tokens that another engine emitted."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from harness.errors import ProtocolError
from harness.observation import Json

WRONG_SAMPLER_EXACT_RATE: Final = 0.999
"""Greedy tokens this often exact exonerate model and weights: what parts is the sampler."""

SCORED: Final = ("greedy", "long", "ids")
"""The kinds of requests whose greedy tokens the reference scores: a prompt whose ids are known."""

CLOSE_EXACT_RATE: Final = 0.85
"""Above it the weights are those of the model, only coarser or differently computed."""


@dataclass(frozen=True)
class Score:
    """The reference's view of one emitted token; `margin` in logits below its own choice."""

    token_id: int
    rank: int
    argmax_id: int
    margin: float


@dataclass(frozen=True)
class GreedyFit:
    """How well greedy tokens fit the reference: how many, how many its own choice, the worst."""

    tokens: int
    exact: int
    worst_margin: float

    @property
    def exact_rate(self) -> float:
        """The share of tokens that are the reference's own choice."""
        return self.exact / self.tokens if self.tokens else 0.0


def read_scores(answer: Mapping[str, Json], n_tokens: int) -> list[Score]:
    """The scores in a /score answer about `n_tokens` tokens; ProtocolError if it is another."""
    rows = answer.get("scores")
    if not isinstance(rows, list) or len(rows) != n_tokens:
        got = len(rows) if isinstance(rows, list) else type(rows).__name__
        raise ProtocolError(f"/score: wanted scores of {n_tokens} tokens, got {got}")
    try:
        return [
            Score(int(r["token_id"]), int(r["rank"]), int(r["argmax_id"]), float(r["margin"]))
            for r in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"/score: a score lacks or garbles {error}") from None


def greedy_fit(scores: Sequence[Score]) -> GreedyFit:
    """The fit of one greedy completion."""
    return GreedyFit(
        tokens=len(scores),
        exact=sum(score.token_id == score.argmax_id for score in scores),
        worst_margin=max((score.margin for score in scores), default=0.0),
    )


def first_difference(emitted: Sequence[int], replayed: Sequence[int]) -> int | None:
    """The index at which two completions part; None if they are equal."""
    for index, (ours, theirs) in enumerate(zip(emitted, replayed, strict=False)):
        if ours != theirs:
            return index
    return None if len(emitted) == len(replayed) else min(len(emitted), len(replayed))


def likely_cause(wrong: AbstractSet[str], asked: AbstractSet[str], fit: GreedyFit) -> str:
    """The likely cause of a mismatch.

    `wrong` are the kinds of requests that part from the replay, of the kinds `asked`; `fit` is that
    of all greedy tokens.
    """
    only = next((cause for kinds, cause in _CAUSES if wrong and wrong <= kinds), "")
    if only and asked - wrong:
        return only
    if fit.exact_rate >= WRONG_SAMPLER_EXACT_RATE:
        return "wrong sampler" if wrong else "logprobs of another distribution"
    if fit.exact_rate >= CLOSE_EXACT_RATE:
        return "other weights, quantization or KV precision"
    return "other model"


_CAUSES: Final = (
    (frozenset({"sampled", "logprobs"}), "wrong sampler"),
    (frozenset({"chat"}), "wrong chat template or BOS"),
    (frozenset({"long"}), "truncated context or KV precision"),
    (frozenset({"ids"}), "prompts of token ids are read otherwise"),
    (frozenset({"whole"}), "another answer where none is streamed"),
)
"""Where requests of these kinds part alone, and others do not, the model itself is right."""
