"""Prometheus metrics of the worker."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import disable_created_metrics as _disable_created_metrics

_disable_created_metrics()  # type: ignore[no-untyped-call]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("ok", "cancelled", "timeout", "out_of_memory", "error", "refused")
_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class WorkerMetrics:
    """The worker's counters; every method may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._started = time.monotonic()
        r = self._registry
        self._vram = Gauge("worker_vram_bytes", "Weights, KV and workspace", registry=r)
        self._requests = Counter("worker_requests", "Requests by outcome", ["outcome"], registry=r)
        self._tokens = Counter("worker_tokens_generated", "Tokens generated", registry=r)
        self._duration = Histogram(
            "worker_inference_duration_seconds",
            "From the start of prefill to the terminal event",
            buckets=_DURATION_BUCKETS,
            registry=r,
        )
        self._ttft = Histogram(
            "worker_ttft_seconds",
            "From acceptance to the first token with text",
            buckets=_TTFT_BUCKETS,
            registry=r,
        )
        self._uptime = Gauge("worker_uptime_seconds", "Seconds since start", registry=r)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)

    @property
    def uptime_s(self) -> float:
        """Seconds since the metrics were made."""
        return time.monotonic() - self._started

    def token(self) -> None:
        """One token was generated."""
        self._tokens.inc()

    def first_text(self, ttft_s: float) -> None:
        """The first token with text left the sampler."""
        self._ttft.observe(ttft_s)

    def finished(self, outcome: str, duration_s: float) -> None:
        """A job ended with this outcome."""
        self._requests.labels(outcome).inc()
        self._duration.observe(duration_s)

    def refused(self) -> None:
        """A request was refused before it became a job."""
        self._requests.labels("refused").inc()

    def exposition(self, vram_bytes: int) -> bytes:
        """The text that a Prometheus server scrapes."""
        self._vram.set(vram_bytes)
        self._uptime.set(self.uptime_s)
        return generate_latest(self._registry)
