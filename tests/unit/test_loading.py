"""The tokenizer is read beside the weights; which error a load ends with is no matter of luck."""

import gc
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import loading
from engine.backends import Progress
from engine.errors import InsufficientMemory, ModelLoadError
from engine.gguf import GGUFFile
from engine.gguf_writer import write_gguf
from engine.loading import load_model
from engine.synthetic import write_model
from tests.unit.test_bad_models import parts, put

WAIT_S = 60
Calls = list[tuple[int, int]]


class FakeRuntime:
    closed = False

    def close(self) -> None:
        self.closed = True


def model(folder: Path, *, bad_text: bool = False) -> Path:
    path = folder / "m.gguf"
    write_model(path, "tiny-qwen2")
    if bad_text:
        metadata, specs = parts(path)
        put("tokenizer.ggml.merges", ["zz qq"])(metadata, specs)
        write_gguf(path, metadata, list(specs.values()))
    return path


def backend(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setattr(loading, "import_backend", lambda device: SimpleNamespace(load=load))


def test_the_text_is_read_while_the_weights_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each waits for the other to have begun, so neither can be first to end."""
    weights, text = threading.Event(), threading.Event()
    read_text = loading._read_text

    def read(file: GGUFFile) -> Any:
        text.set()
        assert weights.wait(WAIT_S)
        return read_text(file)

    def load(file: Any, program: Any, options: Any, progress: Progress) -> FakeRuntime:
        progress(0, 1)
        weights.set()
        assert text.wait(WAIT_S)
        return FakeRuntime()

    monkeypatch.setattr(loading, "_read_text", read)
    backend(monkeypatch, load)
    loaded = load_model(model(tmp_path))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("moon"))[0] == "moon"
    loaded.close()


def test_a_bad_text_ends_the_copying_of_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: Calls = []
    copying, refused = threading.Event(), threading.Event()
    read_text = loading._read_text

    def read(file: GGUFFile) -> Any:
        assert copying.wait(WAIT_S)
        try:
            return read_text(file)
        finally:
            refused.set()

    def load(file: Any, program: Any, options: Any, progress: Progress) -> FakeRuntime:
        progress(0, 10)
        copying.set()
        assert refused.wait(WAIT_S)
        for _ in range(1000 * WAIT_S):  # the future is done only a moment after the text is
            progress(1, 10)
            time.sleep(0.001)
        raise AssertionError("the weights were copied to the end")

    monkeypatch.setattr(loading, "_read_text", read)
    backend(monkeypatch, load)
    with pytest.raises(ModelLoadError, match="merge 0 'zz qq' names unknown tokens"):
        load_model(model(tmp_path, bad_text=True), None, lambda *n: told.append(n))
    assert told[0] == (0, 10)
    assert set(told[1:]) <= {(1, 10)}


def test_of_two_errors_the_text_s_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*_: Any) -> FakeRuntime:
        raise InsufficientMemory("weights", required_bytes=2, available_bytes=1)

    backend(monkeypatch, load)
    with pytest.raises(ModelLoadError, match="names unknown tokens"):
        load_model(model(tmp_path, bad_text=True))
    with pytest.raises(InsufficientMemory, match="2 bytes required"):
        load_model(model(tmp_path))


def test_weights_are_given_back_where_the_text_is_bad(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = FakeRuntime()
    backend(monkeypatch, lambda *_: runtime)
    with pytest.raises(ModelLoadError, match="names unknown tokens"):
        load_model(model(tmp_path, bad_text=True))
    assert runtime.closed


@pytest.mark.parametrize("bad_text", [False, True])
def test_the_collector_rests_during_a_load_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad_text: bool
) -> None:
    seen: list[bool] = []

    def load(*_: Any) -> FakeRuntime:
        seen.append(gc.isenabled())
        return FakeRuntime()

    backend(monkeypatch, load)
    assert gc.isenabled()
    path = model(tmp_path, bad_text=bad_text)
    if bad_text:
        with pytest.raises(ModelLoadError):
            load_model(path)
    else:
        load_model(path).close()
    assert seen == [False]
    assert gc.isenabled()
