"""Sampling: parameters, and the draw that turns logits into a token."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; defaults and bounds are those of engine-api.

    `logprobs` None = off, n = the chosen token's logprob and the n best alternatives. Logprobs are
    of the model's own distribution (before temperature and truncation).
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None


@dataclass(frozen=True)
class SampledToken:
    """One chosen token; `top` lists (token_id, logprob), best first."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenScore:
    """How a reference judges one given token: its logprob, rank (0 = best) and margin.

    `margin` is the argmax's logit minus the token's logit, 0.0 if the token is the argmax.
    """

    token_id: int
    logprob: float
    rank: int
    argmax_id: int
    margin: float
