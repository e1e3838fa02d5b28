"""What a GGUF file says about its model: shapes and constants, checked before they are used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelLoadError
from engine.gguf import GGUFFile
from engine.metadata import StringArray

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt2", "gpt-oss")

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 22
MAX_CONTEXT = 1 << 24

_YARN_NEUTRAL = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE reaches past the context it was trained on.

    `linear` divides every frequency by `factor`; `yarn` does so for the slow ones only, ramping
    between `beta_slow` and `beta_fast` rotations over `original_context_length` positions, and
    multiplies cos and sin by `magnitude`, 0.1·ln(factor) + 1.
    """

    kind: str
    factor: float
    original_context_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """One model's constants. Widths count columns, lengths count tokens.

    `head_dim` is of keys and values alike; `rope_dims` of them are rotated. `sliding_window` is
    None where a query sees everything before it. `n_experts` 0 means a dense feed-forward network.
    """

    architecture: str
    name: str
    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_base: float = 10_000.0
    rope_dims: int = 0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    n_experts: int = 0
    n_experts_used: int = 0
    expert_ffn_width: int = 0

    @classmethod
    def from_file(cls, file: GGUFFile) -> "ModelConfig":
        """Read and check the model's keys; ModelLoadError names the key, wanted and got."""
        keys = _Keys(file)
        heads = _heads(keys)
        config = cls(
            architecture=keys.architecture,
            name=keys.text("general.name", file.path.stem),
            n_layers=keys.count("block_count", MAX_LAYERS),
            context_length=keys.count("context_length", MAX_CONTEXT),
            ffn_width=keys.count("feed_forward_length", MAX_WIDTH),
            vocab_size=_vocab_size(keys, file),
            norm_eps=_norm_eps(keys),
            sliding_window=_sliding_window(keys),
            **heads,
            **_rope(keys, heads["head_dim"]),
            **_experts(keys),
        )
        _refuse_unsupported(keys, config)
        return config


class _Keys:
    """The metadata of one architecture; its keys are given without the architecture's prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self._metadata: Mapping[str, Any] = file.metadata
        self.path = file.path.name
        self.architecture = self.text("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise self.error(
                "general.architecture",
                f"one of {', '.join(ARCHITECTURES)} wanted, got {_shown(self.architecture)}",
            )

    def error(self, key: str, message: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: metadata key {key!r}: {message}")

    def get(self, key: str) -> Any:
        return self._metadata.get(self.full(key))

    def full(self, key: str) -> str:
        """The key as the file spells it."""
        return key if key.startswith(("general.", "tokenizer.")) else f"{self.architecture}.{key}"

    def text(self, key: str, default: str | None = None) -> str:
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"a string wanted, got {_shown(value)}")
        return value

    def count(self, key: str, limit: int, default: int | None = None) -> int:
        """A whole number in 1…limit."""
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= limit:
            raise self.error(
                self.full(key), f"a whole number in 1…{limit} wanted, got {_shown(value)}"
            )
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.error(self.full(key), f"a finite number above 0 wanted, got {_shown(value)}")
        return float(value)


def _shown(value: object) -> str:
    return "nothing (the key is missing)" if value is None else repr(value)[:80]


def _heads(keys: _Keys) -> dict[str, Any]:
    width = keys.count("embedding_length", MAX_WIDTH)
    n_heads = keys.count("attention.head_count", MAX_WIDTH)
    n_kv_heads = keys.count("attention.head_count_kv", MAX_WIDTH, n_heads)
    if n_heads % n_kv_heads:
        raise keys.error(
            keys.full("attention.head_count_kv"),
            f"a divisor of the {n_heads} heads wanted, got {n_kv_heads}",
        )
    if keys.get("attention.key_length") is None and width % n_heads:
        raise keys.error(
            keys.full("attention.head_count"),
            f"a divisor of the width {width} wanted, got {n_heads}",
        )
    head_dim = keys.count("attention.key_length", MAX_WIDTH, width // n_heads)
    value_dim = keys.count("attention.value_length", MAX_WIDTH, head_dim)
    if value_dim != head_dim:
        raise keys.error(
            keys.full("attention.value_length"),
            f"the key length {head_dim} wanted, got {value_dim}",
        )
    if keys.architecture == "gpt2":
        _require_full_heads(keys, width, (n_heads, n_kv_heads, head_dim))
    return {"width": width, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}


def _require_full_heads(keys: _Keys, width: int, heads: tuple[int, int, int]) -> None:
    """GPT-2's fused matrix is three times as wide as the model: queries, keys and values alike."""
    n_heads, n_kv_heads, head_dim = heads
    if n_kv_heads != n_heads:
        key, wanted = keys.full("attention.head_count_kv"), f"the {n_heads} heads"
        raise keys.error(key, f"{wanted} wanted, got {n_kv_heads}")
    if n_heads * head_dim != width:
        key, wanted = keys.full("attention.key_length"), f"{width} / {n_heads} heads"
        raise keys.error(key, f"{wanted} wanted, got {head_dim}")


def _norm_eps(keys: _Keys) -> float:
    suffix = "layer_norm_epsilon" if keys.architecture == "gpt2" else "layer_norm_rms_epsilon"
    return keys.positive(f"attention.{suffix}")


def _sliding_window(keys: _Keys) -> int | None:
    key = "attention.sliding_window"
    if keys.architecture == "gpt-oss":
        return keys.count(key, MAX_CONTEXT, 128)
    return None if keys.get(key) is None else keys.count(key, MAX_CONTEXT)


def _rope(keys: _Keys, head_dim: int) -> dict[str, Any]:
    if keys.architecture == "gpt2":
        return {}
    dims = keys.count("rope.dimension_count", head_dim, head_dim)
    if dims % 2:
        raise keys.error(keys.full("rope.dimension_count"), f"an even number wanted, got {dims}")
    return {
        "rope_base": keys.positive("rope.freq_base", 10_000.0),
        "rope_dims": dims,
        "rope_scaling": _rope_scaling(keys),
    }


def _rope_scaling(keys: _Keys) -> RopeScaling | None:
    key = "rope.scaling.type"
    kind = keys.get(key)
    if kind is None or kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise keys.error(keys.full(key), f"none, linear or yarn wanted, got {_shown(kind)}")
    factor = keys.positive("rope.scaling.factor")
    if factor < 1:
        raise keys.error(keys.full("rope.scaling.factor"), f"at least 1 wanted, got {factor}")
    context = keys.count("context_length", MAX_CONTEXT)
    original = keys.count("rope.scaling.original_context_length", MAX_CONTEXT, context)
    if kind == "linear":
        return RopeScaling("linear", factor, original)
    for key, neutral in _YARN_NEUTRAL.items():
        if keys.get(key) not in (None, neutral):
            raise keys.error(
                keys.full(key), f"only {neutral} is supported, got {_shown(keys.get(key))}"
            )
    return RopeScaling(
        "yarn",
        factor,
        original,
        keys.positive("rope.scaling.yarn_beta_fast", 32.0),
        keys.positive("rope.scaling.yarn_beta_slow", 1.0),
        0.1 * math.log(factor) + 1,
    )


def _experts(keys: _Keys) -> dict[str, Any]:
    if keys.architecture != "gpt-oss":
        return {}
    n_experts = keys.count("expert_count", 4096)
    n_used = keys.count("expert_used_count", n_experts)
    hidden = keys.count("expert_feed_forward_length", MAX_WIDTH)
    return {"n_experts": n_experts, "n_experts_used": n_used, "expert_ffn_width": hidden}


def _vocab_size(keys: _Keys, file: GGUFFile) -> int:
    """Rows of the embedding table; the token list and the `vocab_size` key must agree with it."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    n_tokens = len(tokens) if isinstance(tokens, StringArray) else None
    table = file.tensors.get("token_embd.weight")
    n_rows = table.shape[0] if table is not None else n_tokens
    size = keys.count("vocab_size", MAX_VOCABULARY, n_rows)
    if table is not None and size != n_rows:
        raise keys.error(
            keys.full("vocab_size"), f"the embedding table's {n_rows} rows wanted, got {size}"
        )
    if n_tokens is not None and n_tokens != size:
        raise keys.error("tokenizer.ggml.tokens", f"{size} tokens wanted, got {n_tokens}")
    return size


def _refuse_unsupported(keys: _Keys, config: ModelConfig) -> None:
    if config.n_experts == 0 and keys.get("expert_count") not in (None, 0):
        raise keys.error(
            keys.full("expert_count"),
            f"a dense {config.architecture} model wanted, got {_shown(keys.get('expert_count'))}",
        )
