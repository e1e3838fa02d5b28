"""How decode attention is split over keys and blocks, by the shape of a layer and a context bucket.

The splitting is a function of the position alone, so results depend on nothing else.
"""

from dataclasses import dataclass, replace

from kernels.attention import PAGE_TOKENS, AttentionShape, DecodeTuning
from kernels.context import DeviceLimits
from kernels.gemv import MERGED_SPLITS


@dataclass(frozen=True)
class Bucket:
    """Positions below `limit` share one graph: the same splits and the same tuning of attention."""

    limit: int


BUCKETS = (Bucket(128), Bucket(512), Bucket(1 << 24))


def bucket_of(position: int) -> int:
    """The index of the bucket that a position falls into."""
    return next(i for i, bucket in enumerate(BUCKETS) if position < bucket.limit)


@dataclass(frozen=True)
class Splitting:
    """How decode attention is split: at most `most` splits of at least `least_keys` keys."""

    most: int
    least_keys: int
    tuning: DecodeTuning

    def splits_of(self, n_keys: int) -> int:
        """The most splits that up to `n_keys` keys make."""
        return min(self.most, -(-n_keys // self.least_keys))


_TUNED = (
    (
        8,
        Splitting(MERGED_SPLITS, 128, DecodeTuning(8, 1)),
        Splitting(MERGED_SPLITS, 128, DecodeTuning(8, 1)),
        Splitting(MERGED_SPLITS, 1040, DecodeTuning(8, 2, 8)),
    ),
    (
        32,
        Splitting(MERGED_SPLITS, 256, DecodeTuning(16, 1)),
        Splitting(MERGED_SPLITS, 256, DecodeTuning(16, 1)),
        Splitting(MERGED_SPLITS, 1040, DecodeTuning(8, 1, 4)),
    ),
    (
        1 << 16,
        Splitting(MERGED_SPLITS, 64, DecodeTuning(4, 1)),
        Splitting(MERGED_SPLITS, 128, DecodeTuning(8, 1)),
        Splitting(MERGED_SPLITS, 1056, DecodeTuning(7, 2, 2)),
    ),
)
"""For layers of fewer groups of heads than the number: up to 128 keys, up to 512, more.

The best of those tried over whole decode steps on an H200 (Qwen2.5-0.5B, GPT-OSS, Phi-3-mini).
"""
_WITHOUT_CLUSTERS = Splitting(64, 64, DecodeTuning(4, 2))
_STATIC_BYTES = 12 << 10


def most_keys(shape: AttentionShape, bucket: Bucket) -> int:
    """The most keys that a position of the bucket sees, from a whole page on."""
    return min(bucket.limit, shape.window + PAGE_TOKENS - 1) if shape.window else bucket.limit


def splitting(shape: AttentionShape, bucket: Bucket, limits: DeviceLimits) -> Splitting:
    """How a layer attends in a bucket.

    A few short splits take one block each. Many keys are shared by clusters of blocks, or without
    clusters by more splits and a launch that merges them.
    """
    groups, n_keys = shape.n_heads // shape.heads_a_block, most_keys(shape, bucket)
    _, *tuned = next(row for row in _TUNED if groups < row[0])
    found = tuned[0 if n_keys <= BUCKETS[0].limit else 1 if n_keys <= BUCKETS[1].limit else 2]
    if found.tuning.cluster > 1 and not limits.has_clusters:
        found = _WITHOUT_CLUSTERS
    return replace(found, tuning=_fitting(found.tuning, shape.head_dim, limits.shared_bytes))


def _fitting(tuning: DecodeTuning, head_dim: int, shared_bytes: int) -> DecodeTuning:
    """The tuning with as little less in flight as lets a block begin where it should.

    A cluster's block that takes over half of a multiprocessor's shared memory begins only when the
    linear before it has left.
    """
    if tuning.cluster > 1:
        while tuning.slots > 1 and 2 * tuning.shared_bytes(head_dim) > shared_bytes:
            tuning = replace(tuning, slots=tuning.slots - 1)
    while tuning.shared_bytes(head_dim) + _STATIC_BYTES > shared_bytes:
        tuning = replace(tuning, warps=tuning.warps // 2)
    return tuning
