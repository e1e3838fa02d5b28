"""Run one measured experiment in this process: warm up, measure idle power, measure, write."""

import itertools
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from harness.checked import checked, load_config
from harness.energy import EnergyMeter, open_meter
from harness.environment import environment_snapshot
from harness.errors import UsageError
from harness.experiment import (
    ExperimentConfig,
    ExperimentResult,
    Latency,
    RequestRecord,
    WarmUpRecord,
)
from harness.metrics import (
    NS_PER_S,
    RequestTiming,
    coefficient_of_variation,
    percentiles,
)
from harness.prompts import built_in_prompts, choose, read_prompts
from harness.telemetry import TelemetrySampler

ENTRY_POINT_GROUP = "haikugate.backends"
SHORT_RUN_S = 10.0
STEADY_VARIATION = 0.05
IDLE_POWER_KEPT_S = 3600.0

Advance = Callable[[str], None]
"""Called after each request with what phase it belonged to: drives a progress bar."""


class Generation(Protocol):
    """What a backend returns for one request; times are monotonic nanoseconds."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def sent_ns(self) -> int: ...

    @property
    def token_ns(self) -> tuple[int, ...]: ...


class MeasurementBackend(Protocol):
    """A model that generates in this process (or calls a server); made by its entry point.

    `takes_files`: `load` wants a file, so a registered model's name becomes its path.
    """

    takes_files: bool

    def load(self, model: str, options: Mapping[str, str]) -> None: ...

    def generate(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int
    ) -> Generation: ...

    def flops(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int] | None: ...

    def close(self) -> None: ...


def open_backend(name: str) -> MeasurementBackend:
    """The backend registered under this name; UsageError lists the known ones."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        raise UsageError(f"backend: wanted one of {', '.join(sorted(found))}, got {name!r}")
    backend: MeasurementBackend = found[name].load()()
    return backend


def run_experiment(
    config: str | Path | ExperimentConfig | None = None,
    *,
    advance: Advance = lambda phase: None,
    **fields: Any,
) -> ExperimentResult:
    """Run one experiment and write `<output_dir>/<experiment_id>/result.json` and the parquet.

    `config` is a config, a YAML file or None; `fields` override it. Raises UsageError for a wrong
    field before anything runs.
    """
    checked = _resolve(config, fields)
    prompts = _prompts_of(checked)
    backend = open_backend(checked.backend)
    backend.load(_located(checked.model) if backend.takes_files else checked.model, checked.options)
    try:
        return _measure(checked, backend, prompts, advance)
    finally:
        backend.close()


def _located(model: str) -> str:
    from harness import models

    return model if Path(model).exists() else str(models.resolve(model))


def _resolve(
    config: str | Path | ExperimentConfig | None, fields: Mapping[str, Any]
) -> ExperimentConfig:
    if isinstance(config, ExperimentConfig):
        return checked(ExperimentConfig, {**config.model_dump(), **fields}, "experiment")
    read = load_config(Path(config)) if config is not None else {}
    return checked(ExperimentConfig, {**read, **fields}, str(config or "experiment"))


def _prompts_of(config: ExperimentConfig) -> list[str]:
    known = read_prompts(config.prompts) if config.prompts else built_in_prompts()
    n = config.n_requests + config.warm_up.at_most
    return choose(known, n, seed=config.seed, repeat=config.repeat_prompts)


def _measure(
    config: ExperimentConfig, backend: MeasurementBackend, prompts: list[str], advance: Advance
) -> ExperimentResult:
    experiment_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    directory = config.output_dir / experiment_id
    directory.mkdir(parents=True)
    remaining = iter(prompts)
    warm_up = _warm_up(config, backend, remaining, advance)
    idle_w = _idle_power_w(config, open_meter(config.gpus))
    run = _Run(config, backend, list(itertools.islice(remaining, config.n_requests)))
    with _sampled(directory / "timeseries.parquet", config.gpus) as sampler:
        run.go(open_meter(config.gpus), advance)
    result = run.result(experiment_id, warm_up, idle_w, sampler)
    (directory / "result.json").write_text(result.model_dump_json(indent=2) + "\n")
    return result


@contextmanager
def _sampled(path: Path, gpus: tuple[int, ...]) -> Iterator[TelemetrySampler]:
    sampler = TelemetrySampler(gpu_indices=gpus)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()
        sampler.write_parquet(path)


def _warm_up(
    config: ExperimentConfig,
    backend: MeasurementBackend,
    prompts: Iterator[str],
    advance: Advance,
) -> WarmUpRecord:
    wanted, took_ms = config.warm_up, list[float]()
    while not _warm(wanted.requests, wanted.until_variation_below, took_ms, wanted.at_most):
        generation = _generate(config, backend, next(prompts))
        took_ms.append(_timing(generation).end_to_end_ms)
        advance("warm-up")
    return WarmUpRecord(
        requests=len(took_ms),
        end_to_end_ms=tuple(took_ms),
        variation=coefficient_of_variation(took_ms[-3:]),
    )


def _warm(requests: int, below: float | None, took_ms: list[float], at_most: int) -> bool:
    if len(took_ms) >= at_most:
        return True
    if below is None:
        return len(took_ms) >= requests
    return len(took_ms) >= 3 and coefficient_of_variation(took_ms[-3:]) < below


def _generate(config: ExperimentConfig, backend: MeasurementBackend, prompt: str) -> Generation:
    return backend.generate(
        prompt, max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed
    )


def _timing(generation: Generation) -> RequestTiming:
    return RequestTiming(generation.sent_ns, tuple(generation.token_ns))


_idle_power: dict[tuple[int, ...], tuple[float, float]] = {}


def _idle_power_w(config: ExperimentConfig, meter: EnergyMeter) -> float | None:
    """Watts while nothing runs, in this process and its device context; kept for one hour."""
    if meter.source == "none" or config.baseline_s == 0:
        return None
    kept_s, kept_w = _idle_power.get(config.gpus, (-math.inf, 0.0))
    if time.monotonic() - kept_s < IDLE_POWER_KEPT_S:
        return kept_w
    meter.start()
    time.sleep(config.baseline_s)
    joules = meter.stop()
    if joules is None:
        return None
    idle_w = sum(joules.values()) / config.baseline_s
    _idle_power[config.gpus] = (time.monotonic(), idle_w)
    return idle_w


@dataclass
class _Run:
    """The measured part: every request's generation, the energy used, and what follows."""

    config: ExperimentConfig
    backend: MeasurementBackend
    prompts: list[str]

    def go(self, meter: EnergyMeter, advance: Advance) -> None:
        self.meter = meter
        self.started = datetime.now(UTC)
        self.start_ns = time.monotonic_ns()
        self.generations: list[Generation] = []
        meter.start()
        for prompt in self.prompts:
            self.generations.append(_generate(self.config, self.backend, prompt))
            advance("measure")
        self.joules = meter.stop()
        self.duration_s = (time.monotonic_ns() - self.start_ns) / NS_PER_S
        self.ended = datetime.now(UTC)

    def result(
        self,
        experiment_id: str,
        warm_up: WarmUpRecord,
        idle_w: float | None,
        sampler: TelemetrySampler,
    ) -> ExperimentResult:
        output_tokens = sum(g.completion_tokens for g in self.generations)
        window, rate = self._rate()
        return ExperimentResult(
            experiment_id=experiment_id,
            config=self.config,
            measurement_config_hash=self.config.measurement_config_hash,
            measurement_methodology=self.config.methodology,
            start=self.started,
            end=self.ended,
            input_tokens=sum(g.prompt_tokens for g in self.generations),
            output_tokens=output_tokens,
            total_tokens=sum(g.prompt_tokens for g in self.generations) + output_tokens,
            total_inference_time_sec=self.duration_s,
            avg_tokens_per_second=rate,
            steady_state_window=window,
            warm_up=warm_up,
            peak_memory_bytes=sampler.peak_memory_bytes,
            thermal_throttle=sampler.thermal_throttle,
            environment_snapshot=environment_snapshot(),
            requests=tuple(self._record(i, g) for i, g in enumerate(self.generations)),
            timeseries="timeseries.parquet",
            measurement_warnings=self._warnings(sampler),
            **self._latencies(),
            **self._flops(),
            **self._energy(idle_w, output_tokens),
        )

    def _record(self, index: int, generation: Generation) -> RequestRecord:
        return RequestRecord(
            index=index,
            prompt_sha256=sha256(self.prompts[index].encode()).hexdigest(),
            prompt_tokens=generation.prompt_tokens,
            completion_tokens=generation.completion_tokens,
            sent_ns=generation.sent_ns - self.start_ns,
            token_ns=tuple(t - self.start_ns for t in generation.token_ns),
        )

    def _latencies(self) -> dict[str, Any]:
        timings = [_timing(g) for g in self.generations]
        samples = {
            "ttft_ms": [t.ttft_ms for t in timings if t.ttft_ms is not None],
            "itl_ms": [gap for t in timings for gap in t.itl_ms],
            "tpot_ms": [t.tpot_ms for t in timings if t.tpot_ms is not None],
        }
        found = {name: percentiles(values) for name, values in samples.items()}
        return {
            name: Latency(p50=p.p50, p95=p.p95, p99=p.p99) if p else None
            for name, p in found.items()
        }

    def _flops(self) -> dict[str, Any]:
        counts = [
            self.backend.flops(g.prompt_tokens, g.completion_tokens) for g in self.generations
        ]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return {"flops_prefill": None, "flops_decode": None, "total_flops": None}
        prefill, decode = sum(c[0] for c in known), sum(c[1] for c in known)
        return {"flops_prefill": prefill, "flops_decode": decode, "total_flops": prefill + decode}

    def _energy(self, idle_w: float | None, output_tokens: int) -> dict[str, Any]:
        total_j = None if self.joules is None else sum(self.joules.values())
        adjusted_j = None
        if total_j is not None and idle_w is not None:
            adjusted_j = total_j - idle_w * self.duration_s
        per_token_j = total_j / output_tokens if total_j is not None and output_tokens else None
        return {
            "total_energy_j": total_j,
            "energy_adjusted_j": adjusted_j,
            "avg_energy_per_token_j": per_token_j,
            "energy_per_device_j": self.joules,
            "energy_source": self.meter.source,
            "energy_accuracy": self.meter.accuracy,
            "baseline_power_w": idle_w,
        }

    def _rate(self) -> tuple[tuple[float, float] | None, float]:
        """The window that the rate was taken over (seconds from start), and output tokens/s."""
        stamps = [(t - self.start_ns) / NS_PER_S for g in self.generations for t in g.token_ns]
        return _RATES[self.config.methodology](stamps, self.generations, self.duration_s)

    def _warnings(self, sampler: TelemetrySampler) -> tuple[str, ...]:
        found = {
            f"run of {self.duration_s:.1f} s is shorter than {SHORT_RUN_S:.0f} s": (
                self.duration_s < SHORT_RUN_S
            ),
            "prompts repeat: this may measure a cache": self.config.repeat_prompts,
            "the GPU throttled for heat or power": bool(sampler.thermal_throttle),
            "other processes used the GPU": sampler.foreign_gpu_processes > 0,
            "energy below 100 counter steps": bool(
                self.joules and 0 <= min(self.joules.values()) < 0.1
            ),
        }
        return tuple(text for text, holds in found.items() if holds)


_Rate = tuple[tuple[float, float] | None, float]


def _total_rate(stamps: list[float], generations: list[Generation], duration_s: float) -> _Rate:
    return None, sum(g.completion_tokens for g in generations) / duration_s


def _steady_rate(stamps: list[float], generations: list[Generation], duration_s: float) -> _Rate:
    """Leading requests are dropped until the TPOT of the rest varies by less than 5 %."""
    tpots = [_timing(g).tpot_ms or 0.0 for g in generations]
    first = 0
    while len(tpots) - first > 2 and coefficient_of_variation(tpots[first:]) >= STEADY_VARIATION:
        first += 1
    kept = generations[first:]
    begin_ns = kept[0].sent_ns
    end_ns = max((t for g in kept for t in g.token_ns), default=begin_ns)
    window_s = (end_ns - begin_ns) / NS_PER_S
    tokens = sum(g.completion_tokens for g in kept)
    begin_s = max(0.0, duration_s - window_s)
    return (begin_s, begin_s + window_s), tokens / window_s if window_s else 0.0


def _windowed_rate(stamps: list[float], generations: list[Generation], duration_s: float) -> _Rate:
    """The median over whole one-second windows; the total rate if the run has none."""
    n_windows = int(duration_s)
    if n_windows == 0:
        return _total_rate(stamps, generations, duration_s)
    counts = sorted(sum(1 for t in stamps if w <= t < w + 1) for w in range(n_windows))
    return (0.0, float(n_windows)), float(counts[n_windows // 2])


_RATES: dict[str, Callable[[list[float], list[Generation], float], _Rate]] = {
    "total": _total_rate,
    "steady_state": _steady_rate,
    "windowed": _windowed_rate,
}


def read_result(path: Path) -> ExperimentResult:
    """A result read back from its JSON."""
    return ExperimentResult.model_validate(json.loads(path.read_text(encoding="utf-8")))
