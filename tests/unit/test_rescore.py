"""Token statistics against a reference, and the cause that is named for a mismatch."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.rescore import (
    GreedyFit,
    Score,
    first_difference,
    greedy_fit,
    likely_cause,
    read_scores,
)

ROW = {"token_id": 5, "rank": 0, "argmax_id": 5, "margin": 0.0}
KINDS = frozenset({"greedy", "sampled", "logprobs", "chat", "long"})


def test_scores_are_read_in_order() -> None:
    rows = [ROW, {**ROW, "token_id": 6, "rank": 2, "margin": 0.5, "logprob": -2.0}]
    assert read_scores({"scores": rows}, 2) == [Score(5, 0, 5, 0.0), Score(6, 2, 5, 0.5)]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({}, "got NoneType"),
        ({"scores": [ROW]}, "of 2 tokens, got 1"),
        ({"scores": [ROW, {"token_id": 5}]}, "lacks or garbles"),
        ({"scores": [ROW, {**ROW, "margin": "x"}]}, "lacks or garbles"),
        ({"scores": [ROW, None]}, "lacks or garbles"),
    ],
)
def test_other_answers_are_refused(answer: dict[str, Any], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_scores(answer, 2)


def test_a_fit_counts_exact_tokens_and_keeps_the_worst_margin() -> None:
    fit = greedy_fit([Score(1, 0, 1, 0.0), Score(2, 1, 3, 0.7), Score(4, 0, 4, 0.0)])
    assert (fit.tokens, fit.exact, fit.worst_margin) == (3, 2, 0.7)
    assert fit.exact_rate == pytest.approx(2 / 3)
    assert greedy_fit([]).exact_rate == 0.0


ids = st.lists(st.integers(0, 3), max_size=8)


@given(ids, ids)
def test_the_first_difference_is_where_common_tokens_end(
    a: Sequence[int], b: Sequence[int]
) -> None:
    at = first_difference(a, b)
    assert at == first_difference(b, a)
    if at is None:
        assert a == b
    else:
        assert a[:at] == b[:at]
        assert a[at : at + 1] != b[at : at + 1]


@pytest.mark.parametrize(
    ("wrong", "exact", "cause"),
    [
        ({"sampled"}, 1.0, "wrong sampler"),
        ({"sampled", "logprobs"}, 0.99, "wrong sampler"),
        ({"chat"}, 1.0, "wrong chat template or BOS"),
        ({"long"}, 0.7, "truncated context or KV precision"),
        ({"sampled", "chat"}, 1.0, "wrong sampler"),
        (set(), 1.0, "logprobs of another distribution"),
        ({"greedy", "long"}, 0.9, "other weights, quantization or KV precision"),
        ({"greedy", "sampled", "long"}, 0.3, "other model"),
    ],
)
def test_the_likely_cause(wrong: set[str], exact: float, cause: str) -> None:
    fit = GreedyFit(1000, int(1000 * exact), 0.0)
    assert likely_cause(wrong, KINDS, fit) == cause


def test_where_nothing_else_was_asked_the_kind_tells_nothing() -> None:
    assert likely_cause({"long"}, {"long"}, GreedyFit(1000, 300, 9.0)) == "other model"
