"""The search for tunings, on the fake device: which settings it asks for, and what it tells."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.backends.cuda_memory import DevicePool
from kernels import compile as kernel_sources
from tests.integration.gpu import search_steps
from tests.unit.fake_cuda import FakeCupy
from tests.unit.test_cuda_runtime import cupy, load_tiny

__all__ = ["cupy"]


def test_a_search_times_the_tables_each_folder_and_drawn_settings(
    cupy: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loaded, _ = load_tiny(tmp_path, "tiny-phi3")
    monkeypatch.setattr(search_steps, "load_model", lambda *_: loaded)
    monkeypatch.setattr(DevicePool, "read", lambda _, array: np.ones(array.shape, np.float32))
    other = tmp_path / "other"
    shutil.copytree(kernel_sources.SOURCE_DIR, other)
    told = tmp_path / "rows.json"
    asked = f"m.gguf --depth 200 --seconds 0.5 --kernels {other} --json {told}"
    search_steps.main(asked.split())
    lines = capsys.readouterr().out.splitlines()
    best = lines.index("The best:")
    assert "µs  the tables  (error 0.0e+00)" in lines[0]
    assert "µs  other  (" in lines[1]
    assert "the tables" in lines[best - 1]
    assert len(set(lines[2:best])) > 3
    assert any("Q4_K 256x256" in line for line in lines[2:best])
    assert told.stat().st_size > 0
    assert other != kernel_sources.SOURCE_DIR
    loaded.close()
