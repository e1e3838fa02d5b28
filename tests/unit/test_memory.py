"""Weights stay quantized in memory: loading costs about the file's bytes, whatever the type."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.quants import BLOCK_FORMATS
from engine.synthetic import Shape, write_shape

SMALL = Shape("llama", 2, 1024, 16, 16, 64, 256, 1024, 256, {})
GPT_OSS = Shape(
    "gpt-oss", 2, 1024, 16, 4, 64, 1920, 1024, 256, {"default": "Q8_0", "experts": "MXFP4"},
    sliding_window=64, n_experts=32, n_experts_used=4, rope_scaling=(8.0, 128),
)  # fmt: skip
FILE_BYTES = 64e6
WORKSPACE_BYTES = 24 << 20
"""Activations, KV pages, threads' scratch, a chunk of repacking."""

WRITING_BYTES = 40 << 20

LOAD = """
import ctypes, gc, json, psutil, sys
from pathlib import Path
import engine.backends.cpu
from engine.backends import LoadOptions
from engine.loading import load_model

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    return psutil.Process().memory_info().rss

for line in sys.stdin:
    before = resident()
    model = load_model(Path(line.strip()), LoadOptions(n_threads=1, kv_cache_mb=8))
    weights, grown = model.runtime.memory().weights_bytes, resident() - before
    model.close()
    del model
    left = resident() - before
    print(json.dumps({"grown": grown, "weights": weights, "left": left}), flush=True)
"""
Load = Callable[[Path], dict[str, int]]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """What loading a file costs, in a process that has compiled and loaded before."""
    command = [sys.executable, "-c", LOAD]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1) as child:

        def ask(path: Path) -> dict[str, int]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(f"{path}\n")
            seen: dict[str, int] = json.loads(child.stdout.readline())
            return seen

        yield ask
        assert child.stdin is not None
        child.stdin.close()


def bits(kind: str) -> float:
    """Bits a weight."""
    return 8 * BLOCK_FORMATS[kind].block_bytes / BLOCK_FORMATS[kind].block_size


def llama(kind: str) -> Shape:
    """A model of about FILE_BYTES: its feed-forward matrices fill what is missing."""
    n_others = 2 * 1024 * 1024 + SMALL.n_layers * 4 * 1024 * 1024
    ffn_width = (8 * FILE_BYTES / bits(kind) - n_others) / (3 * 1024 * SMALL.n_layers)
    return replace(SMALL, ffn_width=int(ffn_width) // 256 * 256, types={"default": kind})


def check(load: Load, folder: Path, shapes: tuple[Shape, Shape], kind: str) -> None:
    """Load a small model, whose kernels are compiled then, and a large one, which is measured."""
    for shape, name in zip(shapes, ("small", "large"), strict=True):
        size = write_shape(folder / name, shape, name)
        seen = load(folder / name)
    as_floats = 32 / bits(kind) * size
    assert seen["weights"] < 1.02 * size
    assert seen["grown"] < 1.02 * size + WORKSPACE_BYTES
    assert kind == "F32" or 1.02 * size + WORKSPACE_BYTES < as_floats
    assert seen["left"] < WORKSPACE_BYTES


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_loading_grows_by_the_files_bytes(kind: str, load: Load, tmp_path: Path) -> None:
    check(load, tmp_path, (replace(SMALL, types={"default": kind}), llama(kind)), kind)


def test_a_large_model_is_written_in_little_memory(tmp_path: Path) -> None:
    """Full-size models are streamed: a pool of blocks for each type is all that is held."""
    tracemalloc.start()
    try:
        size = write_shape(tmp_path / "m.gguf", GPT_OSS, "large")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 200e6
    assert peak < WRITING_BYTES


def test_experts_of_200_mb_stay_in_mxfp4(load: Load, tmp_path: Path) -> None:
    check(load, tmp_path, (replace(GPT_OSS, ffn_width=256), GPT_OSS), "MXFP4")
