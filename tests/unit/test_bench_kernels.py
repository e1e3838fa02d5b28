"""Every block type's kernel has a speed."""

from engine.backends.cpu_layouts import LAYOUTS
from engine.bench_kernels import speeds


def test_every_block_type_is_measured_in_bytes_and_weights() -> None:
    found = speeds(n_threads=1, repeats=2, weight_bytes=1 << 20)
    assert [speed.type for speed in found] == list(LAYOUTS)
    for speed in found:
        layout = LAYOUTS[speed.type]
        assert 0 < speed.gb_per_s <= speed.best_gb_per_s
        bytes_a_weight = speed.gb_per_s / speed.gweights_per_s
        assert abs(bytes_a_weight / (layout.block_bytes / layout.block) - 1) < 0.05
