"""The kernels' disk cache: never one kernel under another's key, never half of two versions."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from numba.core import config
from numba.core.caching import IndexDataCacheFile

from engine.backends import cpu_jit
from engine.errors import DeviceError

NOT_SO_LONG_S = 0.3


class Interleaved(IndexDataCacheFile):
    """A cache file whose owner, between two steps, lets the other owner go on for a while."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), "kernel", "stamp")
        self.at_index, self.at_data = threading.Event(), threading.Event()
        self.before_index = self.before_data = threading.Event()

    def _save_index(self, overloads: Any) -> None:
        self.at_index.set()
        self.before_index.wait(NOT_SO_LONG_S)
        super()._save_index(overloads)

    def _save_data(self, name: str, data: Any) -> None:
        self.at_data.set()
        self.before_data.wait(NOT_SO_LONG_S)
        super()._save_data(name, data)
        self.over.set()

    over = threading.Event()


def test_two_processes_that_save_at_once_keep_their_kernels_apart(tmp_path: Path) -> None:
    """The order that would harm: both read the index, both write it, the first saves last."""
    one, two = Interleaved(tmp_path), Interleaved(tmp_path)
    one.over, two.over = threading.Event(), threading.Event()
    one.before_index, two.before_index = two.at_index, one.at_data
    one.before_data, two.before_data = two.over, threading.Event()
    two.before_data.set()
    first = threading.Thread(target=one.save, args=("key of one", "kernel of one"))
    second = threading.Thread(target=two.save, args=("key of two", "kernel of two"))
    first.start()
    one.at_index.wait()
    second.start()
    first.join()
    second.join()
    fresh = IndexDataCacheFile(str(tmp_path), "kernel", "stamp")
    assert fresh.load("key of two") == "kernel of two"
    assert fresh.load("key of one") == "kernel of one"


def test_sources_that_change_while_they_are_read_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_jit, "_source_digest", lambda: cpu_jit._SOURCES_AT_IMPORT)
    cpu_jit.require_unchanged_sources()
    monkeypatch.setattr(cpu_jit, "_source_digest", lambda: "another")
    with pytest.raises(DeviceError, match="start again"):
        cpu_jit.require_unchanged_sources()


def test_a_cache_folder_that_the_user_names_is_still_of_these_sources_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    assert cpu_jit._cache_dir() == tmp_path / cpu_jit._SOURCES_AT_IMPORT


def test_without_a_writable_folder_there_is_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "file"))
    assert cpu_jit._cache_dir().is_dir()


def test_kept_kernels_start_without_the_compiler() -> None:
    """All that Numba needs to compile is most of an engine's start, so it is not read for nothing.

    The kernels are in the cache, because the first of the two commands put them there.
    """
    what = "import sys, engine.backends.cpu; print('numba.np.arraymath' in sys.modules)"
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", what], capture_output=True, text=True, check=True
        )
    assert ended.stdout.split() == ["False"]
