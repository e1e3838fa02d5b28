"""The draw of a token on the device as the kernel probe makes it, beside float64."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.cuda_probe_arrays import REPEATS, Arena, Float64s
from engine.sampler import uniform
from kernels.context import KernelContext
from kernels.sample import PARAMETER_WORDS, STATE_WORDS, Sampler, SampleSettings

VOCAB, DRAWS = 4099, 64
SEED = (1 << 63) + 12345
SEEN = (3, 17, 17, 64, 4098)
SETTINGS = {
    "greedy": SampleSettings(SEED, 0.0, 1.0, 0, 0.0, 1.0),
    "greedy with penalty": SampleSettings(SEED, 0.0, 1.0, 0, 0.0, 1.8),
    "temperature": SampleSettings(SEED, 1.3, 1.0, 0, 0.0, 1.0),
    "top_k": SampleSettings(SEED, 0.8, 1.0, 5, 0.0, 1.0),
    "top_p": SampleSettings(SEED, 1.0, 0.7, 0, 0.0, 1.0),
    "min_p": SampleSettings(SEED, 1.0, 1.0, 0, 0.05, 1.0),
    "penalty": SampleSettings(SEED, 0.9, 0.95, 50, 0.01, 1.4),
}

Floats = NDArray[np.float32]


class Draws:
    """A sampler on the device over one row of random logits."""

    def __init__(self, context: KernelContext, arena: Arena, seed: int) -> None:
        self.context, self.arena = context, arena
        rng = np.random.default_rng([seed, 4])
        self.logits = (3 * rng.standard_normal((1, VOCAB))).astype(np.float32)
        self.logits[0, 2000] = self.logits[0, 100] = self.logits.max()
        n = context.limits.n_multiprocessors
        best = _best_by_block(self.logits[0], n)
        self.seen, self._seen = arena.poisoned((-(-VOCAB // 32),), "i4")
        self.parameters, self._parameters = arena.poisoned((PARAMETER_WORDS,), "i4")
        self.state, self._state = arena.poisoned((STATE_WORDS,), "i4")
        self.sampler = Sampler(
            arena.put(self.logits), (arena.put(best[0]), arena.put(best[1])), self.seen,
            self.parameters, self.state, arena.poisoned((n,), "u8")[0],
        )  # fmt: skip
        self.ids = arena.put(np.array(SEEN, np.int32))

    def launch(self, settings: SampleSettings, index: int) -> list[int]:
        """State after one draw: the token, the next position, the index of the next draw."""
        as_device = self.arena.cupy.asarray
        self._seen.fill(0)
        self._parameters[...] = as_device(np.frombuffer(settings.packed(), np.int32).copy())
        self._state[...] = as_device(np.array([0, 7, index], np.int32))
        if settings.penalty != 1.0:
            self.sampler.mark_seen(self.context, self.ids)
        self.sampler.sample(self.context)
        return [int(word) for word in self._state.get()]

    def cases(self) -> Iterator[dict[str, Any]]:
        """One case a setting: each draw with the interval of its token in float64."""
        for name, settings in SETTINGS.items():
            once = {struct.pack("<3i", *self.launch(settings, 0)) for _ in range(REPEATS)}
            yield {
                "kernel": "SAMPLE",
                "name": name,
                "covers": [name],
                "repeats": REPEATS,
                "distinct": len(once),
                "draws": [self._drawn(settings, index) for index in range(DRAWS)],
            }

    def _drawn(self, settings: SampleSettings, index: int) -> dict[str, Any]:
        token, position, following = self.launch(settings, index)
        low, high = interval(self.logits[0].astype(np.float64), settings, token)
        return {
            "token": token,
            "steps": [position - 7, following - index],
            "draw": uniform(settings.seed, index),
            "interval": [low, high],
        }


def _best_by_block(logits: Floats, n: int) -> tuple[Floats, NDArray[np.int32]]:
    """Largest logit and its lowest id in each of `n` parts, as the head leaves them."""
    parts = np.array_split(np.arange(logits.size), n)
    best = [int(part[np.argmax(logits[part])]) for part in parts]
    return logits[best], np.array(best, np.int32)


def interval(logits: Float64s, settings: SampleSettings, token: int) -> tuple[float, float]:
    """The share of [0, 1) that draws this token; (-1, -1) for one that was cut away."""
    x = logits.copy()
    if settings.penalty != 1.0:
        seen = sorted(set(SEEN))
        x[seen] = np.where(x[seen] > 0, x[seen] / settings.penalty, x[seen] * settings.penalty)
    kept = _kept(x, settings)
    if token not in kept:
        return -1.0, -1.0
    if settings.temperature == 0:
        return 0.0, 1.0
    weights = np.exp((x[kept] - x.max()) / settings.temperature)
    upto = np.cumsum(weights) / weights.sum()
    at = int(np.searchsorted(kept, token))
    return float(upto[at - 1]) if at else 0.0, float(upto[at])


def _kept(x: Float64s, settings: SampleSettings) -> NDArray[np.int64]:
    """Ids after top-k, top-p and min-p, ascending; greedily the first of the largest."""
    order = np.argsort(-x, kind="stable")
    if settings.temperature == 0:
        return order[:1]
    order = order[: settings.top_k] if settings.top_k else order
    weights = np.exp((x[order] - x[order[0]]) / settings.temperature)
    if settings.top_p < 1.0:
        upto = np.cumsum(weights)
        most = int(np.searchsorted(upto, settings.top_p * upto[-1])) + 1
        order, weights = order[:most], weights[:most]
    return np.sort(order[weights >= settings.min_p])
