# ruff: noqa: E501
"""A model file that lies is refused in one line, and nothing of it stays in memory."""

import gc
import math
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import LoadOptions
from engine.errors import InsufficientMemory, ModelLoadError
from engine.gguf import GGUFFile
from engine.gguf_writer import TensorSpec, write_gguf
from engine.loading import load_model
from engine.metadata import StringArray
from engine.synthetic import write_model
from tests.unit.open_files import open_files

LEFT_BYTES = 64 << 10
"""Caches of interpreter and libraries; the smallest of the models below weighs 0.3 MB."""
Parts = tuple[dict[str, Any], dict[str, TensorSpec]]
Change = Callable[[dict[str, Any], dict[str, TensorSpec]], None]


def parts(path: Path) -> Parts:
    """Metadata and tensors of a file, to be changed and written again."""
    with GGUFFile.open(path) as file:
        metadata = {
            key: list(value) if isinstance(value, StringArray) else value
            for key, value in file.metadata.items()
        }
        specs = {
            name: TensorSpec(name, t.shape, t.type, partial(list, (t.raw.tobytes(),)))
            for name, t in file.tensors.items()
        }
    return metadata, specs


def put(key: str, value: Any) -> Change:
    return lambda metadata, _: metadata.update({key: value})


def drop(key: str) -> Change:
    def change(metadata: dict[str, Any], specs: dict[str, TensorSpec]) -> None:
        (metadata if key in metadata else specs).pop(key)

    return change


def reshape(name: str, shape: tuple[int, ...], kind: str = "F32") -> Change:
    def change(_: dict[str, Any], specs: dict[str, TensorSpec]) -> None:
        blank = TensorSpec(name, shape, kind, list)
        specs[name] = replace(blank, content=lambda: [bytes(blank.size_bytes)])

    return change


def rename(name: str, other: str) -> Change:
    def change(_: dict[str, Any], specs: dict[str, TensorSpec]) -> None:
        specs[name] = replace(specs[name], name=other)

    return change


def shorten(key: str) -> Change:
    return lambda metadata, _: metadata.update({key: metadata[key][:-3]})


def merge(text: str) -> Change:
    key = "tokenizer.ggml.merges"
    return lambda metadata, _: metadata.update({key: [*metadata[key][:5], text]})


def fill(name: str, number: float) -> Change:
    def change(_: dict[str, Any], specs: dict[str, TensorSpec]) -> None:
        numbers = np.full(specs[name].shape, number, "<f4").tobytes()
        specs[name] = replace(specs[name], content=lambda: [numbers])

    return change


def rope_freqs(number: float) -> Change:
    name = "rope_freqs.weight"

    def change(metadata: dict[str, Any], specs: dict[str, TensorSpec]) -> None:
        reshape(name, (8,))(metadata, specs)
        fill(name, number)(metadata, specs)

    return change


BAD: dict[str, tuple[str, Change, str]] = {
    "truncated vocabulary": (
        "tiny-llama", shorten("tokenizer.ggml.tokens"), "'tokenizer.ggml.tokens': 539 tokens wanted, got 536"),
    "truncated token types": (
        "tiny-phi3", shorten("tokenizer.ggml.token_type"), "'tokenizer.ggml.token_type': 639 numbers, one a token, wanted, got 636"),
    "truncated scores": (
        "tiny-phi3", shorten("tokenizer.ggml.scores"), "'tokenizer.ggml.scores': 639 numbers, one a token, wanted, got 636"),
    "merge of an unknown token": (
        "tiny-qwen2", merge("zz qq"), "'tokenizer.ggml.merges': merge 5 'zz qq' names unknown tokens"),
    "no layer count": ("tiny-llama", drop("llama.block_count"), "'llama.block_count': a whole number in 1…1024 wanted, got nothing"),
    "no epsilon": ("tiny-phi3", drop("phi3.attention.layer_norm_rms_epsilon"), "got nothing (the key is missing)"),
    "no architecture": ("tiny-llama", drop("general.architecture"), "'general.architecture': a string wanted, got nothing"),
    "unknown architecture": ("tiny-llama", put("general.architecture", "mamba"), "'general.architecture': one of llama, qwen2, phi3, gpt2, gpt-oss wanted, got 'mamba'"),
    "heads that do not divide": ("tiny-qwen2", put("qwen2.attention.head_count_kv", 3), "'qwen2.attention.head_count_kv': a divisor of the 4 heads wanted, got 3"),
    "grouped heads of gpt2": ("tiny-gpt2", put("gpt2.attention.head_count_kv", 2), "'gpt2.attention.head_count_kv': the 4 heads wanted, got 2"),
    "wide heads of gpt2": ("tiny-gpt2", put("gpt2.attention.key_length", 64), "got 64"),
    "no expert": ("tiny-gpt-oss", put("gpt-oss.expert_count", 0), "'gpt-oss.expert_count': a whole number in 1…4096 wanted, got 0"),
    "no expert used": ("tiny-gpt-oss", put("gpt-oss.expert_used_count", 0), "'gpt-oss.expert_used_count': a whole number in 1…4 wanted, got 0"),
    "more experts than stacked": ("tiny-gpt-oss", put("gpt-oss.expert_count", 8), "tensor 'blk.0.ffn_gate_inp.weight': shape (8, 128) wanted, got (4, 128)"),
    "window 0": ("tiny-phi3", put("phi3.attention.sliding_window", 0), "'phi3.attention.sliding_window': a whole number in 1…16777216 wanted, got 0"),
    "negative epsilon": ("tiny-qwen2", put("qwen2.attention.layer_norm_rms_epsilon", -1e-5), "a finite number above 0 wanted, got -"),
    "epsilon NaN": ("tiny-gpt2", put("gpt2.attention.layer_norm_epsilon", math.nan), "'gpt2.attention.layer_norm_epsilon': a finite number above 0 wanted, got nan"),
    "wrong tensor shape": ("tiny-llama", reshape("blk.2.ffn_down.weight", (96, 64)), "tensor 'blk.2.ffn_down.weight': shape (96, 256) wanted, got (96, 64)"),
    "transposed tensor": ("tiny-gpt2", reshape("blk.1.ffn_up.weight", (128, 512)), "tensor 'blk.1.ffn_up.weight': shape (512, 128) wanted, got (128, 512)"),
    "missing tensor": ("tiny-gpt-oss", drop("blk.3.attn_sinks.weight"), "tensor 'blk.3.attn_sinks.weight': shape (8,) wanted, the file has no such one"),
    "duplicate tensor": ("tiny-llama", rename("blk.1.attn_norm.weight", "blk.0.attn_norm.weight"), "'blk.0.attn_norm.weight': given twice"),
    "tensor of another model": ("tiny-llama", reshape("blk.0.attn_q_norm.weight", (16,)), "tensor 'blk.0.attn_q_norm.weight': a tensor of the llama model wanted"),
    "norm NaN": ("tiny-qwen2", fill("blk.1.ffn_norm.weight", math.nan), "tensor 'blk.1.ffn_norm.weight': number 0 is nan, a finite one wanted"),
    "quantized norm": ("tiny-qwen2", reshape("output_norm.weight", (128,), "Q8_0"), "tensor 'output_norm.weight': F32, F16 or BF16 wanted, got Q8_0"),
    "frequencies divided by 0": ("tiny-llama", rope_freqs(0), "tensor 'rope_freqs.weight': number 0 is 0.0, a finite one above 0 wanted"),
}  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(path, LoadOptions(n_threads=1))
    return str(caught.value)


def held() -> tuple[int, set[str], set[threading.Thread]]:
    """(bytes that Python and NumPy hold, open files, threads)."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0], open_files(), set(threading.enumerate())


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused_in_one_line_and_leave_nothing(name: str, tmp_path: Path) -> None:
    model, change, wanted = BAD[name]
    write_model(tmp_path / "good.gguf", model)
    metadata, specs = parts(tmp_path / "good.gguf")
    change(metadata, specs)
    path = tmp_path / "bad.gguf"
    write_gguf(path, metadata, list(specs.values()))
    load_model(tmp_path / "good.gguf", LoadOptions(n_threads=1)).close()
    message = refusal(path)
    assert wanted in message
    assert "\n" not in message
    leaves_nothing(path, lambda: refusal(path))


def leaves_nothing(path: Path, fail: Callable[[], Any]) -> None:
    """Whatever a load imports and compiles must be there before: text and weights race to fail."""
    tracemalloc.start()
    try:
        before = held()
        fail()
        after = held()
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] < LEFT_BYTES
    assert after[1] <= before[1]
    assert after[2] <= before[2]
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()


def test_a_load_that_fails_after_the_weights_leaves_nothing(tmp_path: Path) -> None:
    """The weights fit the limit, the workspace beside them does not."""
    path = tmp_path / "m.gguf"
    assert write_model(path, "tiny-qwen2") < 1 << 20

    def fail() -> None:
        with pytest.raises(InsufficientMemory, match="weights, workspace and one page"):
            load_model(path, LoadOptions(n_threads=2, memory_limit_mb=1))

    fail()
    leaves_nothing(path, fail)
