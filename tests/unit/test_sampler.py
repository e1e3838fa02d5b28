"""The sampler draws what the published counter-based generator and the given rules say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampler import (
    SamplingParams,
    candidates,
    choose,
    philox4x32,
    sample,
    score_token,
    uniform,
)

ALL_ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ALL_ONES,) * 4,
            (ALL_ONES,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], wanted: tuple[int, ...]
) -> None:
    assert philox4x32(counter, key) == wanted


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_uniform_lies_in_the_half_open_unit_interval(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0


def logits_of(probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def test_draws_follow_the_distribution() -> None:
    wanted = [0.5, 0.25, 0.15, 0.1]
    logits, counts = logits_of(wanted), np.zeros(4)
    for seed in range(8000):
        counts[choose(logits, SamplingParams(seed=seed), 3, ())] += 1
    chi_squared = (((counts - 8000 * np.array(wanted)) ** 2) / (8000 * np.array(wanted))).sum()
    assert chi_squared < 16.27  # 3 degrees of freedom, p = 0.001


def test_temperature_sharpens_as_the_formula_says() -> None:
    ids, weights = candidates(logits_of([0.6, 0.3, 0.1]), SamplingParams(seed=0, temperature=0.5))
    assert ids.tolist() == [0, 1, 2]
    assert weights / weights.sum() == pytest.approx(np.array([36, 9, 1]) / 46, rel=1e-5)


def test_zero_temperature_is_the_lowest_argmax() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    assert choose(logits, SamplingParams(seed=9, temperature=0.0), 0, ()) == 1


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (SamplingParams(seed=0, top_k=2), [1, 3]),
        (SamplingParams(seed=0, top_p=0.7), [1, 3]),
        (SamplingParams(seed=0, top_p=0.71), [1, 2, 3]),
        (SamplingParams(seed=0, min_p=0.49), [1, 2, 3]),
        (SamplingParams(seed=0, top_p=1e-9), [1]),
    ],
)
def test_truncation_keeps_the_likely_tokens(sampling: SamplingParams, kept: list[int]) -> None:
    ids, _ = candidates(logits_of([0.1, 0.402, 0.198, 0.3]), sampling)
    assert ids.tolist() == kept


def test_top_p_is_exact_on_a_flat_vocabulary() -> None:
    ids, _ = candidates(np.zeros(50_000, np.float32), SamplingParams(seed=0, top_p=0.5))
    assert abs(ids.size - 25_000) <= 1


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.2, 6.0])
@pytest.mark.parametrize("temperature", [0.001, 0.02, 0.1, 0.7, 1.0, 2.0, 50.0])
def test_top_p_keeps_what_sorting_the_whole_vocabulary_would(
    spread: float, temperature: float
) -> None:
    draw = np.random.default_rng(7)
    for size in (2, 300, 5000):
        logits = (draw.standard_normal(size) * spread).astype(np.float32)
        for held in (logits, np.round(logits)):
            sampling = SamplingParams(0, temperature=temperature, top_p=draw.uniform(0.05, 0.9999))
            _, weights = candidates(held, SamplingParams(0, temperature=temperature))
            order = np.lexsort((np.arange(size), -weights))
            mass = np.cumsum(weights[order], dtype=np.float64)
            n = np.count_nonzero(mass < sampling.top_p * weights.sum(dtype=np.float64)) + 1
            assert candidates(held, sampling)[0].tolist() == sorted(order[:n])


def test_equal_logits_at_the_top_k_edge_keep_lower_ids() -> None:
    ids, _ = candidates(np.zeros(10, np.float32), SamplingParams(seed=0, top_k=3))
    assert ids.tolist() == [0, 1, 2]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampling = SamplingParams(seed=0, temperature=0.0, repetition_penalty=2.0)
    assert choose(np.array([4.0, 3.0], np.float32), sampling, 0, (0, 0)) == 1
    assert choose(np.array([-1.0, -1.5], np.float32), sampling, 0, (0,)) == 1


def test_logprobs_are_of_the_models_own_distribution() -> None:
    sampling = SamplingParams(seed=0, temperature=0.0, logprobs=2, top_k=1)
    token = sample(logits_of([0.1, 0.6, 0.3]), sampling, 0, ())
    assert token.logprob == pytest.approx(np.log(0.6), abs=1e-6)
    assert [one for one, _ in token.top] == [1, 2]
    assert [value for _, value in token.top] == pytest.approx(np.log([0.6, 0.3]), abs=1e-6)


def test_a_score_tells_rank_and_margin() -> None:
    score = score_token(np.array([1.0, 4.0, 2.5], np.float32), 2)
    assert (score.rank, score.argmax_id, score.margin) == (1, 1, 1.5)
    assert score_token(np.array([1.0, 4.0], np.float32), 1).margin == 0.0
