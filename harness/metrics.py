"""Latency and throughput, defined once: TTFT, ITL, TPOT, percentiles. Pure functions."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NS_PER_MS = 1e6
NS_PER_S = 1e9


@dataclass(frozen=True)
class Percentiles:
    """p50, p95 and p99 by linear interpolation between closest ranks, in the samples' unit."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class RequestTiming:
    """One request on one monotonic clock: when it was sent, and when each non-empty token came."""

    sent_ns: int
    token_ns: tuple[int, ...]

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token: from sending to the first non-empty token; None without one."""
        return (self.token_ns[0] - self.sent_ns) / NS_PER_MS if self.token_ns else None

    @property
    def itl_ms(self) -> tuple[float, ...]:
        """Inter-token latencies: each gap between two consecutive tokens."""
        gaps = zip(self.token_ns, self.token_ns[1:], strict=False)
        return tuple((after - before) / NS_PER_MS for before, after in gaps)

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token: the mean gap, first token excluded; None under two tokens."""
        if len(self.token_ns) < 2:
            return None
        return (self.token_ns[-1] - self.token_ns[0]) / NS_PER_MS / (len(self.token_ns) - 1)

    @property
    def end_to_end_ms(self) -> float:
        """From sending to the last token (0 without one)."""
        return (self.token_ns[-1] - self.sent_ns) / NS_PER_MS if self.token_ns else 0.0


def percentiles(samples: Sequence[float]) -> Percentiles | None:
    """p50, p95, p99 of the samples, None for none."""
    if not samples:
        return None
    if len(samples) == 1:
        return Percentiles(samples[0], samples[0], samples[0])
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return Percentiles(cuts[49], cuts[94], cuts[98])


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Standard deviation over mean (population); 0 for fewer than two samples."""
    if len(samples) < 2 or not (mean := statistics.fmean(samples)):
        return 0.0
    return statistics.pstdev(samples) / mean


def decode_tokens_per_s(timing: RequestTiming) -> float | None:
    """Decode rate of one request: tokens after the first over the time they took."""
    tpot_ms = timing.tpot_ms
    return 1e3 / tpot_ms if tpot_ms else None
