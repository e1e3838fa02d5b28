"""Sampling: parameters, and the draw that turns logits into a token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10
_WORD = 0xFFFFFFFF
_LEAST_WEIGHTS = (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-7, -1.0)
"""Of the largest: how light a token may be that a nucleus is looked for among; at last any."""

Floats = NDArray[np.float32]


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10, four 32-bit words. Salmon et al., Parallel Random Numbers, SC 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        first, second = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & _WORD,
            (first >> 32) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _PHILOX_WEYL[0]) & _WORD, (k1 + _PHILOX_WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, token_index: int) -> float:
    """The draw in [0, 1) of a seed's n-th token: 53 bits of Philox words 1 (high) and 0.

    The key is the seed, the counter the token index, both as two 32-bit words, low first.
    """
    counter = (token_index & _WORD, token_index >> 32 & _WORD, 0, 0)
    words = philox4x32(counter, (seed & _WORD, seed >> 32 & _WORD))
    return float(((words[1] << 32 | words[0]) >> 11) * 2.0**-53)


def penalized(logits: Floats, token_ids: Sequence[int], penalty: float) -> Floats:
    """Logits with those of tokens already there divided by the penalty (multiplied if negative)."""
    if penalty == 1.0 or not token_ids:
        return logits
    seen = np.unique(np.asarray(token_ids, np.int64))
    changed = logits.copy()
    chosen = changed[seen]
    factor = np.float32(penalty)
    changed[seen] = np.where(chosen > 0, chosen / factor, chosen * factor)
    return changed


def _top_k(logits: Floats, k: int) -> NDArray[np.int64]:
    """Ids of the k largest logits in ascending order of id; of equal ones the lower ids."""
    if not 0 < k < logits.size:
        return np.arange(logits.size)
    edge = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > edge)
    equal = np.flatnonzero(logits == edge)[: k - above.size]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: Floats, top_p: float) -> NDArray[np.int64]:
    """Places of the fewest largest weights whose sum reaches top_p of the whole, ascending.

    Only as many are sorted as it takes; the largest weight is 1.
    """
    wanted = top_p * float(weights.sum(dtype=np.float64))
    for least in _LEAST_WEIGHTS:
        places = np.flatnonzero(weights > least)
        short = float(weights[places].sum(dtype=np.float64)) < wanted
        if short and places.size < weights.size:
            continue
        order = _heaviest_first(weights, places)
        mass = np.cumsum(weights[order], dtype=np.float64)
        if mass[-1] >= wanted:
            break
    n = int(np.searchsorted(mass, wanted)) + 1
    return np.sort(order[:n])


def _heaviest_first(weights: Floats, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places by falling weight, of equal ones the lower first: one sort of 64-bit integers.

    Weights are not negative, so their bits are in their order.
    """
    lightness = (~weights[places].view(np.uint32)).astype(np.int64)
    return np.sort((lightness - (1 << 31)) << 32 | places) & _WORD


def candidates(logits: Floats, sampling: SamplingParams) -> tuple[NDArray[np.int64], Floats]:
    """(token ids ascending, unnormalised probabilities) after temperature, top-k, top-p, min-p."""
    ids = _top_k(logits, sampling.top_k)
    chosen = logits[ids]
    weights = np.exp((chosen - chosen.max()) / np.float32(sampling.temperature), dtype=np.float32)
    if sampling.top_p < 1.0:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0.0:
        likely = weights >= np.float32(sampling.min_p) * weights.max()
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def choose(
    logits: Floats, sampling: SamplingParams, token_index: int, token_ids: Sequence[int]
) -> int:
    """The next token: the argmax at temperature 0, else the draw, first id whose mass exceeds it.

    Order: repetition penalty, temperature, top-k, top-p, min-p. Of equal logits the lower id wins.
    """
    logits = penalized(logits, token_ids, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return int(np.argmax(logits))
    ids, weights = candidates(logits, sampling)
    mass = np.cumsum(weights, dtype=np.float64)
    draw = uniform(sampling.seed, token_index) * mass[-1]
    return int(ids[min(int(np.searchsorted(mass, draw, side="right")), ids.size - 1)])


def log_normalizer(logits: Floats) -> float:
    """The log of Σ exp(logit), by which logprobs are logits minus this."""
    top = float(logits.max())
    return top + float(np.log(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


def sample(
    logits: Floats, sampling: SamplingParams, token_index: int, token_ids: Sequence[int]
) -> SampledToken:
    """Choose a token and, where asked, its logprob and the best alternatives."""
    token_id = choose(logits, sampling, token_index, token_ids)
    if sampling.logprobs is None:
        return SampledToken(token_id)
    normalizer = log_normalizer(logits)
    best = _top_k(logits, sampling.logprobs) if sampling.logprobs else np.arange(0)
    order = best[np.argsort(-logits[best], kind="stable")]
    top = tuple((int(one), float(logits[one]) - normalizer) for one in order)
    return SampledToken(token_id, float(logits[token_id]) - normalizer, top)


def score_token(logits: Floats, token_id: int) -> TokenScore:
    """How logits judge a given token; of equal logits the lower id ranks first."""
    logit = logits[token_id]
    argmax_id = int(np.argmax(logits))
    rank = int((logits > logit).sum() + (logits[:token_id] == logit).sum())
    logprob = float(logit) - log_normalizer(logits)
    return TokenScore(token_id, logprob, rank, argmax_id, float(logits[argmax_id] - logit))
