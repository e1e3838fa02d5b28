"""Exact tests against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.significance import rate_upper_bound, signed_rank_p

distinct = st.lists(st.integers(-1000, 1000).filter(bool), min_size=3, max_size=20, unique_by=abs)


@given(distinct)
def test_signed_rank_equals_scipys_exact_test(differences: list[int]) -> None:
    zeros = [0.0] * len(differences)
    wanted = stats.wilcoxon(differences, alternative="less", method="exact").pvalue
    assert signed_rank_p([float(d) for d in differences], zeros) == pytest.approx(wanted)


def test_ties_share_their_rank() -> None:
    # |d| = 1, 1, 2: ranks 1.5, 1.5, 3; positive rank sum 1.5, reached or passed under by 3 of 8.
    assert signed_rank_p([1.0, -1.0, -2.0], [0.0, 0.0, 0.0]) == 3 / 8


def test_equal_samples_tell_nothing() -> None:
    assert signed_rank_p([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_twelve_pairs_can_reach_one_in_four_thousand() -> None:
    assert signed_rank_p([1.0] * 12, [2.0 + i for i in range(12)]) == 2**-12


@given(st.integers(1, 400), st.data())
def test_upper_bound_equals_clopper_pearson(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, min(n - 1, 30)))
    wanted = stats.beta.ppf(0.95, hits + 1, n - hits)
    assert rate_upper_bound(hits, n) == pytest.approx(wanted, rel=1e-6)


def test_all_hits_bound_nothing() -> None:
    assert rate_upper_bound(5, 5) == 1.0
