"""Model constants: what files say is read, what they get wrong is refused by key."""

import math
from pathlib import Path
from typing import Any

import pytest

from engine.config import ModelConfig, RopeScaling
from engine.errors import ModelLoadError
from engine.gguf import GGUFFile
from tests.unit.gguf_files import tokenizer_file, written

KEYS: dict[str, Any] = {
    "block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64,
    "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 100,
    "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
GPT_OSS = KEYS | {
    "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
    "attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8,
    "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": 4096,
}  # fmt: skip


def config(folder: Path, architecture: str, keys: dict[str, Any]) -> ModelConfig:
    full = {f"{architecture}.{key}": value for key, value in keys.items()}
    with GGUFFile.open(written(folder / "m.gguf", architecture, full)) as file:
        return ModelConfig.from_file(file)


def test_default_model() -> None:
    with GGUFFile.open(tokenizer_file("smollm2")) as file:
        found = ModelConfig.from_file(file)
    assert (found.n_layers, found.width, found.n_heads, found.n_kv_heads) == (30, 576, 9, 3)
    assert (found.head_dim, found.ffn_width, found.vocab_size) == (64, 1536, 49152)
    assert (found.rope_base, found.rope_dims, found.sliding_window) == (100_000, 64, None)


def test_gpt_oss_keys(tmp_path: Path) -> None:
    found = config(tmp_path, "gpt-oss", GPT_OSS)
    assert (found.n_experts, found.n_experts_used, found.expert_ffn_width) == (4, 2, 32)
    assert (found.head_dim, found.sliding_window) == (16, 8)
    assert found.rope_scaling == RopeScaling("yarn", 32, 4096, 32, 1, 0.1 * math.log(32) + 1)


def test_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ModelLoadError, match="llama, qwen2, phi3, gpt2, gpt-oss wanted, got 'rwkv'"
    ):
        config(tmp_path, "rwkv", KEYS)


WRONG = [
    ("llama", "block_count", None), ("llama", "block_count", 0), ("llama", "block_count", 1 << 30),
    ("llama", "embedding_length", "32"), ("llama", "attention.head_count", 5),
    ("llama", "attention.head_count", 0), ("llama", "attention.head_count_kv", 3),
    ("llama", "attention.layer_norm_rms_epsilon", -1.0),
    ("llama", "attention.layer_norm_rms_epsilon", math.nan),
    ("llama", "attention.layer_norm_rms_epsilon", math.inf),
    ("llama", "attention.layer_norm_rms_epsilon", None),
    ("llama", "rope.freq_base", 0.0), ("llama", "rope.dimension_count", 7),
    ("llama", "rope.dimension_count", 10), ("llama", "vocab_size", None),
    ("llama", "rope.scaling.type", "magic"), ("llama", "expert_count", 8),
    ("phi3", "attention.sliding_window", 0), ("gpt-oss", "attention.sliding_window", 0),
    ("gpt-oss", "expert_count", 0), ("gpt-oss", "expert_used_count", 5),
    ("gpt-oss", "expert_used_count", 0), ("gpt-oss", "attention.value_length", 8),
    ("gpt-oss", "rope.scaling.factor", 0.5), ("gpt-oss", "rope.scaling.attn_factor", 2.0),
    ("gpt2", "attention.head_count_kv", 2), ("gpt2", "attention.key_length", 4096),
    ("llama", "attention.head_count", True), ("llama", "attention.head_count", [4, 4]),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "key", "value"), WRONG)
def test_wrong_values_are_refused_by_key(
    architecture: str, key: str, value: Any, tmp_path: Path
) -> None:
    keys = (GPT_OSS if architecture == "gpt-oss" else KEYS) | {key: value}
    if architecture == "gpt2":
        keys = (
            KEYS
            | {"attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 4}
            | {key: value}
        )
    with pytest.raises(ModelLoadError) as caught:
        config(tmp_path, architecture, keys)
    assert f"{architecture}.{key}" in str(caught.value)
    assert "wanted" in str(caught.value) or "supported" in str(caught.value)
    assert ", got " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_token_list_must_fit_the_vocabulary(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.gguf",
        "llama",
        {f"llama.{key}": value for key, value in KEYS.items()}
        | {"tokenizer.ggml.tokens": ["a", "b"]},
    )
    with (
        GGUFFile.open(path) as file,
        pytest.raises(ModelLoadError, match="100 tokens wanted, got 2"),
    ):
        ModelConfig.from_file(file)
