"""Steps that no context bucket changes are built once: what is launched stays the same."""

from pathlib import Path
from typing import Any

import pytest

from engine.backends.cuda_buckets import KeptStep
from engine.backends.cuda_splitting import BUCKETS
from engine.synthetic import TINY
from tests.unit.fake_cuda import FakeCupy
from tests.unit.test_cuda_runtime import cupy, load, load_tiny

__all__ = ["cupy"]

Noted = list[tuple[object, object, bytes, bool]]


def noted(generation: Any, bucket: int, kept: dict[int, KeptStep]) -> Noted:
    model = generation.model
    with generation.context.noting() as launches:
        for launch in generation._build((*model.body, *model.head), bucket, kept):
            launch()
    return [(one.kernel, one.shape, bytes(one.arguments), one.dependent) for one in launches]


@pytest.mark.parametrize("model", sorted(TINY))
def test_each_bucket_launches_what_it_would_alone(
    cupy: FakeCupy, tmp_path: Path, model: str
) -> None:
    loaded, runtime = load_tiny(tmp_path, model)
    generation = runtime._generation
    kept: dict[int, KeptStep] = {}
    steps = [noted(generation, bucket, kept) for bucket in range(len(BUCKETS))]
    assert kept
    assert steps == [noted(generation, bucket, {}) for bucket in range(len(BUCKETS))]
    assert (steps[0] != steps[-1]) == (model != "tiny-phi3")  # all it sees is in the first bucket
    loaded.close()


def test_a_kept_launch_can_be_queued_again(cupy: FakeCupy) -> None:
    runtime = load()
    context, launches = runtime._generation.context, runtime._generation._head_launches
    seen = []
    for _ in range(2):
        with context.noting() as once:
            for launch in launches:
                launch()
        seen.append(list(once))
    assert seen[0] == seen[1] != []
    assert runtime._generation._kept == {}
    runtime.close()
