"""Latency definitions, against numbers worked by hand and against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import (
    RequestTiming,
    coefficient_of_variation,
    decode_tokens_per_s,
    percentiles,
)

MS = 1_000_000


def test_latencies_of_one_request_are_the_gaps_worked_by_hand() -> None:
    timing = RequestTiming(sent_ns=5 * MS, token_ns=(25 * MS, 30 * MS, 45 * MS))
    assert timing.ttft_ms == 20
    assert timing.itl_ms == (5, 15)
    assert timing.tpot_ms == 10
    assert timing.end_to_end_ms == 40
    assert decode_tokens_per_s(timing) == 100


def test_a_request_without_tokens_has_no_latencies() -> None:
    timing = RequestTiming(sent_ns=5, token_ns=())
    assert (timing.ttft_ms, timing.itl_ms, timing.tpot_ms, timing.end_to_end_ms) == (
        None,
        (),
        None,
        0.0,
    )
    assert decode_tokens_per_s(timing) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_percentiles_equal_numpys(samples: list[float]) -> None:
    found = percentiles(samples)
    assert found is not None
    wanted = np.percentile(samples, [50, 95, 99])
    assert [found.p50, found.p95, found.p99] == pytest.approx(wanted, rel=1e-9, abs=1e-6)


def test_no_samples_have_no_percentiles() -> None:
    assert percentiles([]) is None


@given(st.lists(st.floats(1, 1e3), min_size=2, max_size=50))
def test_variation_equals_numpys(samples: list[float]) -> None:
    wanted = np.std(samples) / np.mean(samples)
    assert coefficient_of_variation(samples) == pytest.approx(wanted, abs=1e-9)
