"""Searches the settings of one token's captured step: the tool behind the tables of tunings.

python -m tests.integration.gpu.search_steps MODEL.gguf [--depth 3900] [--seconds 60] [--seed 0]
[--kernels DIR ...] [--json FILE] times whole steps at a depth on cuda:0, first and last as the
tables have it, and between with attention and linears drawn anew. Each step is run twice beside
the first: its logits' error (share of their range) is told, and whether both runs had the same
bits. `--kernels` names copies of kernels/ with something changed, or left out, which take turns
with the tree's own. Only times of one run compare: hosts and processes differ by 2.5 %.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from engine.backends import LoadOptions
from engine.backends.cuda import CudaRuntime
from engine.backends.cuda_model import BoundAttention
from engine.backends.cuda_splitting import BUCKETS, Splitting, bucket_of, splitting
from engine.loading import load_model
from kernels import compile as kernel_sources
from kernels.attention import DecodeTuning
from kernels.context import DeviceLimits
from kernels.gemv import GemvTuning, choose_tuning

Linear = tuple[str, int, int]
STEPS = 40
ROUNDS = 3
WARPS = (4, 6, 7, 8, 9, 11, 12, 14, 16)
LEAST_KEYS = (32, 64, 128, 256, 528, 1040, 1056)
LEAST_SHARED_BYTES = (0, 114 << 10, 116 << 10)
EARLY_SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 1.0)


@dataclass(frozen=True)
class Setting:
    """What one capture uses instead of the tables; `kernels`: a folder of sources."""

    kernels: Path = kernel_sources.SOURCE_DIR
    attention: Splitting | None = None
    linears: Mapping[Linear, GemvTuning] = field(default_factory=dict)

    def __str__(self) -> str:
        """What differs, in a line."""
        parts = [self.kernels.name] if self.kernels != kernel_sources.SOURCE_DIR else []
        if self.attention:
            t = self.attention.tuning
            parts.append(f"{t.warps}x{t.slots} of {t.cluster}, {self.attention.least_keys} keys")
        parts += [f"{a} {n}x{k}: {t.warps}x{t.slots} {t.least_shared_bytes >> 10}K"
                  f" early {t.early_tiles}" for (a, n, k), t in self.linears.items()]  # fmt: skip
        return "; ".join(parts) or "the tables"


@dataclass(frozen=True)
class Timed:
    """One setting's best microseconds a step, or why there are none."""

    setting: str
    us: float
    error: float = 0.0
    same_bits: bool = True
    failed: str = ""


class Steps:
    """The steps of one loaded model at one depth, after a prompt of random tokens.

    `linears`: those of the steps captured so far, as the tables tune them.
    """

    def __init__(self, runtime: CudaRuntime, depth: int) -> None:
        self.runtime = runtime
        self.depth = depth
        self._context = runtime._context
        self._generation = runtime._generation
        self._loaded: dict[Path, tuple[dict[Any, Any], dict[Any, Any]]] = {
            kernel_sources.SOURCE_DIR: (self._context._functions, self._context._modules)
        }
        self.linears: dict[Linear, GemvTuning] = {}
        self._first: Any = None
        draw = random.Random(0)
        self._sequence = runtime.open_sequence()
        ids = [draw.randrange(runtime.vocab_size) for _ in range(depth)]
        runtime.prefill(self._sequence, ids, lambda: None)
        self._sequence.grow(depth + STEPS + 1)

    @property
    def layer(self) -> BoundAttention:
        """The first layer's attention."""
        body = self._generation.model.body
        return next(bound for bound in body if isinstance(bound, BoundAttention))

    def timed(self, setting: Setting) -> Timed:
        """Capture the step anew and time it; what cannot be launched is told, not raised."""
        try:
            with self._used(setting):
                self._capture()
                logits, again = self._logits(), self._logits()
                us = min(self._round_us() for _ in range(ROUNDS))
        except Exception as error:
            return Timed(str(setting), float("inf"), failed=f"{type(error).__name__}: {error}")
        self._first = logits if self._first is None else self._first
        error = float(np.abs(logits - self._first).max() / (np.ptp(self._first) or 1))
        return Timed(str(setting), round(us, 1), error, bool(np.array_equal(logits, again)))

    @contextmanager
    def _used(self, setting: Setting) -> Iterator[None]:
        attention = setting.attention
        functions, modules = self._loaded.setdefault(setting.kernels, ({}, {}))
        self._context._functions, self._context._modules = functions, modules
        sources = mock.patch.object(kernel_sources, "SOURCE_DIR", setting.kernels)
        split = mock.patch(
            "engine.backends.cuda_decode.splitting",
            (lambda shape, bucket, limits: attention) if attention else splitting,
        )
        tuned = mock.patch("engine.backends.cuda_decode.choose_tuning", self._tuning(setting))
        with sources, split, tuned:
            kernel_sources.expand.cache_clear()
            kernel_sources._source_digest.cache_clear()
            yield

    def _tuning(self, setting: Setting) -> Callable[..., GemvTuning]:
        def tuning(limits: DeviceLimits, matrices: Any, rows: int, k: int) -> GemvTuning:
            key = (matrices[0].type, rows, k)
            self.linears[key] = choose_tuning(limits, matrices, rows, k)
            return setting.linears.get(key, self.linears[key])

        return tuning

    def _capture(self) -> None:
        self._generation._kept.clear()
        self._generation._graphs.capture(bucket_of(self.depth))
        self._generation._kept.clear()

    def _rewind(self) -> None:
        self.runtime._stream.synchronize()
        state = np.array([1, self.depth, 0], np.int32)
        self._generation.memory.write(self._generation._sampler.state, state)

    def _logits(self) -> Any:
        self._rewind()
        self._generation._graphs.launch(self.depth)
        self.runtime._stream.synchronize()
        return self._generation.memory.read(self._generation._sampler.logits)[0].copy()

    def _round_us(self) -> float:
        cuda = self.runtime._cupy.cuda
        begin, end = cuda.Event(), cuda.Event()
        self._rewind()
        begin.record(self.runtime._stream)
        for _ in range(STEPS):
            self._generation._graphs.launch(self.depth)
        end.record(self.runtime._stream)
        end.synchronize()
        return float(cuda.get_elapsed_time(begin, end)) * 1e3 / STEPS


def drawn(
    draw: random.Random,
    now: Splitting,
    linears: Mapping[Linear, GemvTuning],
    sources: Sequence[Path],
) -> Setting:
    """A setting: kernels, then attention and each linear as the tables have it or drawn anew."""
    attention = None
    if draw.random() < 0.6:
        tuning = DecodeTuning(draw.choice(WARPS), draw.choice((1, 2, 3)), draw.choice((1, 2, 4, 8)))
        attention = Splitting(now.most, draw.choice(LEAST_KEYS), tuning)
    changed = {key: retuned(draw, tuned) for key, tuned in linears.items() if draw.random() < 0.4}
    return Setting(draw.choice(sources), attention, changed)


def retuned(draw: random.Random, tuned: GemvTuning) -> GemvTuning:
    """A linear's tuning drawn anew, its tiles as they are packed."""
    warps, slots = draw.randrange(8, 25, 2), draw.choice((1, 1, 2))
    early_tiles = int(warps * slots * draw.choice(EARLY_SHARES))
    shared = draw.choice(LEAST_SHARED_BYTES)
    return replace(
        tuned, warps=warps, slots=slots, least_shared_bytes=shared, early_tiles=early_tiles
    )


def search(
    steps: Steps, seconds: float, draw: random.Random, sources: Sequence[Path]
) -> Iterator[Timed]:
    """The tables' own setting, that with each folder of kernels, drawn ones, and it again."""
    until_s = time.monotonic() + seconds
    for folder in sources:
        yield steps.timed(Setting(folder))
    limits = steps._context.limits
    now = splitting(steps.layer.shape, BUCKETS[bucket_of(steps.depth)], limits)
    while time.monotonic() < until_s:
        yield steps.timed(drawn(draw, now, steps.linears, sources))
    yield steps.timed(Setting())


def main(arguments: list[str] | None = None) -> None:
    """Search, and print each setting, then the best."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, default=3900)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernels", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    model = load_model(given.model, LoadOptions(device="cuda:0"))
    assert isinstance(model.runtime, CudaRuntime)
    found = []
    sources = [kernel_sources.SOURCE_DIR, *given.kernels]
    draw = random.Random(given.seed)
    try:
        for timed in search(Steps(model.runtime, given.depth), given.seconds, draw, sources):
            found.append(timed)
            bits = "" if timed.same_bits else ", other bits"
            said = timed.failed or f"error {timed.error:.1e}{bits}"
            print(f"{timed.us:8.1f} µs  {timed.setting}  ({said})", flush=True)
    finally:
        model.close()
    if given.json:
        given.json.write_text(json.dumps([asdict(timed) for timed in found]), encoding="utf-8")
    print("The best:")
    sound = [timed for timed in found if timed.same_bits and not timed.failed]
    for timed in sorted(sound, key=lambda one: one.us)[:10]:
        print(f"{timed.us:8.1f} µs  {timed.setting}  (error {timed.error:.1e})")


if __name__ == "__main__":
    main()
