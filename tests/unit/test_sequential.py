"""The sequential test keeps the error rates it states, and forgives nothing for a good start."""

import random

import pytest

from harness.sequential import SequentialTest

TEST = SequentialTest(honest_rate=0.001, cheating_rate=0.02, false_alarm=1e-3, miss=1e-3)


def trials(rate: float, n: int, seed: int) -> list[bool]:
    draw = random.Random(seed)
    return [draw.random() < rate for _ in range(n)]


def test_an_honest_rate_is_hardly_ever_rejected() -> None:
    rejected = sum(TEST.rejected_at(trials(0.001, 900, seed)) is not None for seed in range(2000))
    assert rejected <= 8


def test_a_cheating_rate_is_rejected_long_before_the_end() -> None:
    found = [TEST.rejected_at(trials(0.02, 4000, seed)) for seed in range(500)]
    assert all(at is not None for at in found)
    assert sorted(at or 0 for at in found)[250] < 400


def test_an_honest_start_buys_nothing() -> None:
    late = [False] * 5000 + trials(0.02, 4000, 1)
    found = TEST.rejected_at(late)
    assert found is not None
    assert found > 5000


@pytest.mark.parametrize("given", [[], [False] * 100_000])
def test_no_hit_no_rejection(given: list[bool]) -> None:
    assert TEST.rejected_at(given) is None


def test_hits_alone_are_rejected_at_once() -> None:
    assert TEST.rejected_at([True] * 10) == 3
