"""Inverse frequencies of rotary position embedding, with linear and YaRN scaling."""

import math
from collections.abc import Sequence

from engine.config import ModelConfig, RopeScaling


def inverse_frequencies(
    config: ModelConfig, divisors: Sequence[float] | None = None
) -> tuple[float, ...]:
    """Radians a position for each rotated pair: base^(-2i / rope_dims), scaled.

    `divisors`, one a pair, are what Llama 3.1 and later divide the frequencies by.

    YaRN (Peng et al., 2023, arXiv 2309.00071, section 3.2): pairs that turn more than beta_fast
    times within the original context keep their frequency, those that turn less than beta_slow
    times are divided by the factor, and a linear ramp over the pair index lies between.
    """
    dims, base = config.rope_dims, config.rope_base
    plain = [base ** (-2 * i / dims) for i in range(dims // 2)]
    if divisors is not None:
        plain = [f / divisor for f, divisor in zip(plain, divisors, strict=True)]
    scaling = config.rope_scaling
    if scaling is None:
        return tuple(plain)
    if scaling.kind == "linear":
        return tuple(f / scaling.factor for f in plain)
    low, high = _ramp(scaling, dims, base)
    return tuple(_yarn(f, i, low, high, scaling.factor) for i, f in enumerate(plain))


def _ramp(scaling: RopeScaling, dims: int, base: float) -> tuple[float, float]:
    """The pair indices (fractional) where the ramp begins and ends."""

    def pair_that_turns(times: float) -> float:
        turns = scaling.original_context_length / (times * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(base))

    low = max(pair_that_turns(scaling.beta_fast), 0.0)
    high = min(pair_that_turns(scaling.beta_slow), dims - 1.0)
    return low, high


def _yarn(frequency: float, pair: int, low: float, high: float, factor: float) -> float:
    slowed = min(max((pair - low) / max(high - low, 1e-3), 0.0), 1.0)
    return frequency * (1 - slowed) + frequency / factor * slowed


def magnitude(config: ModelConfig) -> float:
    """What cos and sin are multiplied by."""
    return config.rope_scaling.magnitude if config.rope_scaling else 1.0
