"""The search for tunings, on the fake device: which settings it asks for, and what it tells."""

import json
import math
import random
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from engine.backends.cuda import CudaRuntime
from engine.backends.cuda_memory import DevicePool
from engine.loading import LoadedModel
from kernels import compile as kernel_sources
from tests.integration.gpu import search_steps
from tests.unit.fake_cuda import FakeCupy
from tests.unit.test_cuda_runtime import cupy, load_tiny

__all__ = ["cupy"]


@pytest.fixture
def model(cupy: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A tiny model whose logits are all ones; what loads it is given it."""
    loaded, _ = load_tiny(tmp_path, "tiny-phi3")
    monkeypatch.setattr(search_steps, "load_model", lambda *_: loaded)
    monkeypatch.setattr(DevicePool, "read", lambda _, array: np.ones(array.shape, np.float32))
    return loaded


def test_a_search_begins_and_ends_with_the_tables(
    model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, other, told = kernel_sources.SOURCE_DIR, tmp_path / "other", tmp_path / "rows.json"
    shutil.copytree(tree, other)
    search_steps.main(f"m.gguf --depth 200 --seconds 0 --kernels {other} --json {told}".split())
    settings = [one["setting"] for one in json.loads(told.read_text(encoding="utf-8"))]
    assert settings == ["the tables", "other", "the tables"]
    lines = capsys.readouterr().out.splitlines()
    assert "µs  the tables  (error 0.0e+00)" in lines[0]
    assert lines.index("The best:") == len(settings)
    assert tree == kernel_sources.SOURCE_DIR


def test_a_search_draws_attention_and_the_linears_of_the_model(model: LoadedModel) -> None:
    assert isinstance(model.runtime, CudaRuntime)
    steps = search_steps.Steps(model.runtime, 200)
    found = search_steps.search(steps, math.inf, random.Random(0), [kernel_sources.SOURCE_DIR])
    tried = [timed.setting for timed in islice(found, 40)]
    assert len(set(tried)) > 20
    assert any(" keys" in setting for setting in tried)
    assert {type_name for type_name, _, _ in steps.linears} <= {"Q4_K", "Q5_K", "Q6_K"}
    assert all(any(f"{t} {n}x{k}" in one for one in tried) for t, n, k in steps.linears)
    model.close()


def test_what_cannot_be_launched_is_told(model: LoadedModel) -> None:
    assert isinstance(model.runtime, CudaRuntime)
    steps = search_steps.Steps(model.runtime, 200)
    steps.timed(search_steps.Setting())
    linear, tuned = next(iter(steps.linears.items()))
    huge = replace(tuned, least_shared_bytes=1 << 20)
    timed = steps.timed(search_steps.Setting(linears={linear: huge}))
    assert timed.us == math.inf
    assert "shared memory" in timed.failed
    model.close()
