"""A measured experiment as data: what is configured, and what a result must state."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.pseudonyms import without_home

SCHEMA_VERSION = "2.0"
Methodology = Literal["total", "steady_state", "windowed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WarmUp(_Frozen):
    """Requests before measuring: a fixed number, or until latency's variation settles."""

    requests: int = Field(default=2, ge=0, le=1000)
    until_variation_below: float | None = Field(default=None, gt=0, le=1)
    at_most: int = Field(default=20, ge=1, le=1000)


class ExperimentConfig(_Frozen):
    """One experiment; every field can come from YAML, from keywords or from the command line."""

    model: str = "smollm2-135m-instruct"
    backend: str = "native"
    n_requests: int = Field(default=5, ge=1, le=100_000, description="measured requests")
    max_tokens: int = Field(default=64, ge=1, le=2048)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = Field(default=0, ge=0, lt=2**64)
    prompts: Path | None = Field(default=None, description="JSONL with a `prompt` on each line")
    repeat_prompts: bool = Field(default=False, description="allow a prompt twice (a cache!)")
    methodology: Methodology = "total"
    warm_up: WarmUp = WarmUp()
    baseline_s: float = Field(default=30.0, ge=0, le=600, description="idle power measured before")
    gpus: tuple[int, ...] = ()
    options: Mapping[str, str] = Field(default_factory=dict, description="for the backend")
    output_dir: Path = Path("results")

    @model_validator(mode="after")
    def _steady_state_needs_requests(self) -> Self:
        if self.methodology == "steady_state" and self.n_requests < 3:
            raise ValueError("methodology steady_state needs n_requests >= 3")
        return self

    @property
    def measurement_config_hash(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON, where it is written left out.

        Paths below the home folder start with `~` in it: whose home it is changes no experiment.
        """
        canonical = without_home(self.model_dump(mode="json", exclude={"output_dir"}))
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Latency(_Frozen):
    """Percentiles of one latency in milliseconds."""

    p50: float
    p95: float
    p99: float


class RequestRecord(_Frozen):
    """One measured request; times in ns of one monotonic clock, relative to the run's start."""

    index: int
    prompt_sha256: str
    prompt_tokens: int
    completion_tokens: int
    sent_ns: int
    token_ns: tuple[int, ...]


class WarmUpRecord(_Frozen):
    """What was done before measuring."""

    requests: int
    end_to_end_ms: tuple[float, ...]
    variation: float


class ExperimentResult(_Frozen):
    """What an experiment measured; a field that no sensor could fill is null, never zero."""

    schema_version: Literal["2.0"] = "2.0"
    experiment_id: str
    config: ExperimentConfig
    measurement_config_hash: str
    measurement_methodology: Methodology
    start: datetime
    end: datetime
    total_tokens: int
    input_tokens: int
    output_tokens: int
    total_inference_time_sec: float
    avg_tokens_per_second: float
    total_flops: int | None
    flops_prefill: int | None
    flops_decode: int | None
    total_energy_j: float | None
    energy_adjusted_j: float | None
    avg_energy_per_token_j: float | None
    energy_per_device_j: Mapping[str, float] | None
    energy_source: str
    energy_accuracy: str
    baseline_power_w: float | None
    ttft_ms: Latency | None
    itl_ms: Latency | None
    tpot_ms: Latency | None
    peak_memory_bytes: int | None
    warm_up: WarmUpRecord
    steady_state_window: tuple[float, float] | None
    thermal_throttle: bool | None
    measurement_warnings: tuple[str, ...]
    environment_snapshot: Mapping[str, Any]
    requests: tuple[RequestRecord, ...]
    timeseries: str
