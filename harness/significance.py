"""Exact tests for small paired samples and rates; no distributional assumption, no thresholds.

Timings on a shared machine are judged only by these: two kinds of request are interleaved in
pairs, and what is tested is whether one kind is faster more often, and by more, than chance allows.
"""

import math
from collections.abc import Sequence


def signed_rank_p(faster: Sequence[float], slower: Sequence[float]) -> float:
    """P-value that `faster` is not below `slower`: exact one-sided Wilcoxon signed-rank test.

    The samples are paired by position. Pairs without a difference are left out (Wilcoxon 1945);
    ties in the ranks get their mean rank, and the exact distribution is over these mean ranks.
    """
    differences = [a - b for a, b in zip(faster, slower, strict=True) if a != b]
    if not differences:
        return 1.0
    doubled = _doubled_ranks([abs(d) for d in differences])
    against = sum(r for r, d in zip(doubled, differences, strict=True) if d > 0)
    ways = [1] + [0] * sum(doubled)
    for rank in doubled:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return sum(ways[: against + 1]) / (1 << len(doubled))


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the mean rank of each value, so that ties stay whole numbers."""
    ordered = sorted(values)
    first = {value: ordered.index(value) + 1 for value in set(ordered)}
    count = {value: ordered.count(value) for value in first}
    return [2 * first[value] + count[value] - 1 for value in values]


def rate_upper_bound(hits: int, n: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson upper bound of a rate seen as `hits` of n trials."""
    if hits >= n:
        return 1.0
    low, high = hits / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        above = _at_most_p(hits, n, middle) > 1 - confidence
        low, high = (middle, high) if above else (low, middle)
    return high


def _at_most_p(hits: int, n: int, rate: float) -> float:
    """P(at most `hits` of n), each term by its logarithm: n may be a million."""
    if rate >= 1.0:
        return 0.0
    hit, miss = math.log(rate), math.log1p(-rate)
    ways = math.lgamma(n + 1)
    return math.fsum(
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * hit + (n - k) * miss)
        for k in range(hits + 1)
    )
