"""How decode attention is split: over every position, and with room for what runs beside it."""

from math import ceil

import pytest

from engine.backends.cuda_splitting import BUCKETS, bucket_of, most_keys, splitting
from kernels.attention import AttentionShape, DecodeTuning
from kernels.context import DeviceLimits


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_splits_cover_every_position_of_their_bucket(architecture: str) -> None:
    limits = DeviceLimits(architecture, 132, 232_448)
    cases = [(window, heads) for window in (0, 1, 64, 128, 449, 450, 2047) for heads in (2, 8, 32)]
    for window, heads in cases:
        shape = AttentionShape(2 * heads, heads, 64, 1.0, window)
        for position in (*range(0, 1200, 7), 127, 128, 511, 512, 2047, 2048, 8191, 8192, 131071):
            bucket = BUCKETS[bucket_of(position)]
            how = splitting(shape, bucket, limits)
            first = max(0, position + 1 - window) // 64 * 64 if window else 0
            n_keys = position + 1 - first
            split_keys = max(how.least_keys, ceil(ceil(n_keys / how.most) / 16) * 16)
            launched = how.splits_of(most_keys(shape, bucket))
            assert ceil(n_keys / split_keys) <= launched <= how.most, (window, position)
            assert how.tuning.cluster == 1 or limits.has_clusters


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "tuning"),
    [
        (14, 2, 64, DecodeTuning(8, 2, 8)),
        (28, 4, 128, DecodeTuning(8, 1, 8)),
        (32, 32, 96, DecodeTuning(7, 2, 2)),
        (32, 32, 128, DecodeTuning(7, 2, 2)),
    ],
)
def test_a_block_of_a_cluster_leaves_room_for_the_linear_before_it(
    heads: int, kv_heads: int, head_dim: int, tuning: DecodeTuning
) -> None:
    limits = DeviceLimits("sm_90", 132, 232_448)
    shape = AttentionShape(heads, kv_heads, head_dim, 1.0)
    assert splitting(shape, BUCKETS[-1], limits).tuning == tuning
    assert 2 * tuning.shared_bytes(head_dim) <= limits.shared_bytes
