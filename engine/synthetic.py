"""Generated models: GGUF files with random weights, tiny ones for tests or of published shapes.

Weights are noise with sane scales: such a file measures an engine and exercises every kernel, but
says nothing sensible. Its metadata has `haikugate.generated` = true. Usage:
`python -m engine.synthetic NAME OUT.gguf [--seed N]`.
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gguf_writer import TensorSpec, write_gguf
from engine.quants import BLOCK_FORMATS
from engine.synthetic_vocabulary import KINDS, tokenizer_metadata

_POOL_BLOCKS = 1 << 16
_SCALES_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
_LARGEST_QUANT = {
    "Q4_0": 8, "Q4_1": 16, "Q5_0": 16, "Q5_1": 32, "Q8_0": 128, "Q4_K": 16 * 40, "Q5_K": 32 * 40,
    "Q6_K": 32 * 60,
}  # fmt: skip

Types = str | tuple[str, str]


@dataclass(frozen=True)
class Shape:
    """A model's constants, and the type of each kind of matrix (a pair alternates by layer)."""

    architecture: str
    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    context_length: int
    types: Mapping[str, Types]
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    sliding_window: int = 0
    n_experts: int = 0
    n_experts_used: int = 0
    rope_scaling: tuple[float, int] = field(default=(1.0, 0))
    tied: bool = False


_Q5: dict[str, Types] = {
    "default": "Q5_0",
    "attn_v": ("Q5_0", "Q8_0"),
    "ffn_down": ("Q4_K", "Q6_K"),
}
_Q4_K_M: dict[str, Types] = {
    "default": "Q4_K", "output": "Q6_K", "attn_v": ("Q4_K", "Q6_K"), "attn_qkv": "Q5_K",
    "ffn_down": ("Q4_K", "Q6_K"),
}  # fmt: skip
_MXFP4: dict[str, Types] = {"default": "Q8_0", "experts": "MXFP4"}

PUBLISHED: dict[str, Shape] = {
    "qwen2.5-0.5b": Shape(
        "qwen2", 24, 896, 14, 2, 64, 4864, 151_936, 32_768, _Q5 | {"output": "Q8_0"}, 1e-6, 1e6
    ),
    "qwen2.5-7b": Shape(
        "qwen2", 28, 3584, 28, 4, 128, 18_944, 152_064, 32_768, _Q4_K_M, 1e-6, 1e6
    ),
    "phi-3-mini": Shape(
        "phi3", 32, 3072, 32, 32, 96, 8192, 32_064, 4096, _Q4_K_M, sliding_window=2047
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss", 24, 2880, 64, 8, 64, 2880, 201_088, 131_072, _MXFP4, rope_base=150_000.0,
        sliding_window=128, n_experts=32, n_experts_used=4, rope_scaling=(32.0, 4096),
    ),
}  # fmt: skip

TINY: dict[str, Shape] = {
    "tiny-llama": Shape(
        "llama", 3, 96, 6, 2, 16, 256, 0, 1024, {"default": "Q4_1", "token_embd": "Q8_0"}, tied=True
    ),
    "tiny-qwen2": Shape("qwen2", 2, 128, 4, 2, 32, 512, 0, 1024, _Q5, 1e-6, 1e6),
    "tiny-phi3": Shape("phi3", 2, 256, 4, 4, 64, 512, 0, 1024, _Q4_K_M, sliding_window=63),
    "tiny-gpt2": Shape(
        "gpt2", 2, 128, 4, 4, 32, 512, 0, 1024, {"default": "F16", "ffn_down": "Q8_0"}, tied=True
    ),
    "tiny-gpt-oss": Shape(
        "gpt-oss", 4, 128, 8, 2, 32, 128, 0, 1024, _MXFP4, rope_base=150_000.0,
        sliding_window=16, n_experts=4, n_experts_used=2, rope_scaling=(8.0, 128),
    ),
}  # fmt: skip

FLOAT = {f"{name}-f32": replace(shape, types={"default": "F32"}) for name, shape in TINY.items()}
ALL_MXFP4 = {"tiny-gpt-oss-mxfp4": replace(TINY["tiny-gpt-oss"], types={"default": "MXFP4"})}
MODELS = TINY | FLOAT | ALL_MXFP4 | PUBLISHED


def write_model(path: Path, name: str, seed: int = 0) -> int:
    """Write the generated model `name` (a key of MODELS) and return its size in bytes.

    The same name and seed give the same bytes.
    """
    return write_shape(path, MODELS[name], name, seed)


def write_shape(path: Path, shape: Shape, name: str, seed: int = 0) -> int:
    """Write a generated model of any shape; `vocab_size` 0 takes the small tokenizer's own."""
    tokens = tokenizer_metadata(KINDS[shape.architecture], shape.vocab_size)
    shape = replace(shape, vocab_size=len(tokens["tokenizer.ggml.tokens"]))
    metadata = _constants(shape, name, seed) | tokens
    return write_gguf(path, metadata, _Weights(shape, seed).tensors())


def _constants(shape: Shape, name: str, seed: int) -> dict[str, Any]:
    layer_norm = "layer_norm_epsilon" if shape.architecture == "gpt2" else "layer_norm_rms_epsilon"
    keys: dict[str, Any] = {
        "block_count": shape.n_layers,
        "context_length": shape.context_length,
        "embedding_length": shape.width,
        "feed_forward_length": shape.ffn_width,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        f"attention.{layer_norm}": shape.norm_eps,
        "vocab_size": shape.vocab_size,
    }
    if shape.architecture != "gpt2":
        keys |= {"rope.freq_base": shape.rope_base, "rope.dimension_count": shape.head_dim}
        keys |= {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    if shape.sliding_window:
        keys["attention.sliding_window"] = shape.sliding_window
    if shape.n_experts:
        keys |= _expert_constants(shape)
    general = {
        "general.architecture": shape.architecture,
        "general.name": f"{name} (generated, seed {seed})",
        "haikugate.generated": True,
        "haikugate.seed": seed,
    }
    return general | {f"{shape.architecture}.{key}": value for key, value in keys.items()}


def _expert_constants(shape: Shape) -> dict[str, Any]:
    factor, original_context = shape.rope_scaling
    return {
        "expert_count": shape.n_experts,
        "expert_used_count": shape.n_experts_used,
        "expert_feed_forward_length": shape.ffn_width,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original_context,
    }


class _Weights:
    """The tensors of one generated model, by the published names and layouts."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape, self._noise = shape, _Noise(seed)
        self._specs: list[TensorSpec] = []

    def tensors(self) -> list[TensorSpec]:
        shape = self._shape
        layer = _LAYERS[shape.architecture]
        self.matrix("token_embd", (shape.vocab_size, shape.width))
        if shape.architecture == "gpt2":
            self._add("position_embd.weight", (shape.context_length, shape.width), "F32")
        for index in range(shape.n_layers):
            layer(self, f"blk.{index}.", index)
        self.norm("output_norm")
        if not shape.tied:
            self.matrix("output", (shape.vocab_size, shape.width))
        return self._specs

    def matrix(self, name: str, size: tuple[int, ...], layer: int = 0, kind: str = "") -> None:
        types = self._shape.types
        chosen = types.get(kind or name.rpartition(".")[2], types["default"])
        self._add(f"{name}.weight", size, chosen if isinstance(chosen, str) else chosen[layer % 2])

    def bias(self, name: str, size: tuple[int, ...]) -> None:
        self._add(f"{name}.bias", size, "F32")

    def norm(self, name: str) -> None:
        noise, size = self._noise, (self._shape.width,)
        full = f"{name}.weight"
        self._specs.append(TensorSpec(full, size, "F32", lambda: [noise.around_one(full, size)]))
        if self._shape.architecture == "gpt2":
            self.bias(name, size)

    def floats(self, name: str, size: tuple[int, ...]) -> None:
        self._add(f"{name}.weight", size, "F32")

    def _add(self, name: str, size: tuple[int, ...], type_name: str) -> None:
        content = self._noise.content(name, size, type_name)
        self._specs.append(TensorSpec(name, size, type_name, content))

    def llama_layer(self, prefix: str, index: int) -> None:
        s = self._shape
        self.norm(prefix + "attn_norm")
        for name, heads in (("q", s.n_heads), ("k", s.n_kv_heads), ("v", s.n_kv_heads)):
            self.matrix(f"{prefix}attn_{name}", (heads * s.head_dim, s.width), index)
            if s.architecture == "qwen2":
                self.bias(f"{prefix}attn_{name}", (heads * s.head_dim,))
        self.matrix(prefix + "attn_output", (s.width, s.n_heads * s.head_dim))
        self.norm(prefix + "ffn_norm")
        self.matrix(prefix + "ffn_gate", (s.ffn_width, s.width))
        self.matrix(prefix + "ffn_up", (s.ffn_width, s.width))
        self.matrix(prefix + "ffn_down", (s.width, s.ffn_width), index)

    def phi3_layer(self, prefix: str, index: int) -> None:
        s = self._shape
        self.norm(prefix + "attn_norm")
        rows = (s.n_heads + 2 * s.n_kv_heads) * s.head_dim
        self.matrix(prefix + "attn_qkv", (rows, s.width))
        self.matrix(prefix + "attn_output", (s.width, s.n_heads * s.head_dim))
        self.norm(prefix + "ffn_norm")
        self.matrix(prefix + "ffn_up", (2 * s.ffn_width, s.width))
        self.matrix(prefix + "ffn_down", (s.width, s.ffn_width), index)

    def gpt2_layer(self, prefix: str, index: int) -> None:
        width, hidden = self._shape.width, self._shape.ffn_width
        self.norm(prefix + "attn_norm")
        self.norm(prefix + "ffn_norm")
        sizes = {
            "attn_qkv": (3 * width, width), "attn_output": (width, width),
            "ffn_up": (hidden, width), "ffn_down": (width, hidden),
        }  # fmt: skip
        for name, size in sizes.items():
            self.matrix(prefix + name, size, index)
            self.bias(prefix + name, size[:1])

    def gpt_oss_layer(self, prefix: str, index: int) -> None:
        s = self._shape
        self.norm(prefix + "attn_norm")
        self.norm(prefix + "post_attention_norm")
        for name, heads in (("q", s.n_heads), ("k", s.n_kv_heads), ("v", s.n_kv_heads)):
            self.matrix(f"{prefix}attn_{name}", (heads * s.head_dim, s.width), index)
            self.bias(f"{prefix}attn_{name}", (heads * s.head_dim,))
        self.matrix(prefix + "attn_output", (s.width, s.n_heads * s.head_dim))
        self.bias(prefix + "attn_output", (s.width,))
        self.floats(prefix + "attn_sinks", (s.n_heads,))
        self.floats(prefix + "ffn_gate_inp", (s.n_experts, s.width))
        self.bias(prefix + "ffn_gate_inp", (s.n_experts,))
        for name, rows, columns in (
            ("gate", s.ffn_width, s.width), ("up", s.ffn_width, s.width),
            ("down", s.width, s.ffn_width),
        ):  # fmt: skip
            expert = f"{prefix}ffn_{name}_exps"
            self.matrix(expert, (s.n_experts, rows, columns), index, "experts")
            self.bias(expert, (s.n_experts, rows))


_LAYERS: dict[str, Callable[[_Weights, str, int], None]] = {
    "llama": _Weights.llama_layer,
    "qwen2": _Weights.llama_layer,
    "phi3": _Weights.phi3_layer,
    "gpt2": _Weights.gpt2_layer,
    "gpt-oss": _Weights.gpt_oss_layer,
}


class _Noise:
    """Random tensors: the bytes of each depend on the seed and the tensor's name alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[tuple[str, int], bytes] = {}

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])

    def around_one(self, name: str, size: tuple[int, ...]) -> bytes:
        """Norm weights near 1."""
        numbers = 1 + 0.05 * self._rng(name).standard_normal(size)
        return numbers.astype("<f4").tobytes()

    def content(
        self, name: str, size: tuple[int, ...], type_name: str
    ) -> Callable[[], Iterable[bytes]]:
        """What a TensorSpec needs: noise of standard deviation 1/√columns, at most 0.1."""
        block = BLOCK_FORMATS[type_name]
        n_blocks = int(np.prod(size, dtype=np.int64)) // block.block_size
        return lambda: self._blocks(name, type_name, size[-1], n_blocks)

    def _blocks(self, name: str, type_name: str, columns: int, n_blocks: int) -> Iterator[bytes]:
        rng, block_bytes = self._rng(name), BLOCK_FORMATS[type_name].block_bytes
        if n_blocks <= _POOL_BLOCKS:
            yield random_blocks(rng, type_name, columns, n_blocks).tobytes()
            return
        pool = self._pool(type_name, columns)
        while n_blocks > 0:
            turned = int(rng.integers(_POOL_BLOCKS)) * block_bytes
            whole = pool[turned:] + pool[:turned]
            yield whole[: min(n_blocks, _POOL_BLOCKS) * block_bytes]
            n_blocks -= _POOL_BLOCKS

    def _pool(self, type_name: str, columns: int) -> bytes:
        key = (type_name, columns)
        if key not in self._pools:
            rng = self._rng(f"{type_name} {columns}")
            self._pools[key] = random_blocks(rng, type_name, columns, _POOL_BLOCKS).tobytes()
        return self._pools[key]


def random_blocks(
    rng: np.random.Generator, type_name: str, columns: int, n_blocks: int
) -> NDArray[np.uint8]:
    """uint8[n_blocks, block_bytes] whose weights are noise of standard deviation 1/√columns."""
    deviation = min(0.1, columns**-0.5)
    block_bytes = BLOCK_FORMATS[type_name].block_bytes
    if type_name in ("F32", "F16", "BF16"):
        return _random_floats(rng, type_name, n_blocks, deviation)
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    if type_name == "MXFP4":
        exponent = round(np.log2(deviation / 3))
        blocks[:, 0] = 127 + exponent + rng.integers(-1, 2, n_blocks)
        return blocks
    for index, at in enumerate(_SCALES_AT[type_name]):
        scale = deviation * 1.7 / _LARGEST_QUANT[type_name] * _offset_share(type_name, index)
        halves = (scale * rng.uniform(0.8, 1.2, n_blocks)).astype("<f2")
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks


def _offset_share(type_name: str, index: int) -> float:
    """The second number of a block is a minimum: it centres the quants (q in 0…15 or 0…31)."""
    if index == 0:
        return 1.0
    return {"Q4_1": -7.5, "Q5_1": -15.5, "Q4_K": 7.5, "Q5_K": 15.5}[type_name]


def _random_floats(
    rng: np.random.Generator, type_name: str, count: int, deviation: float
) -> NDArray[np.uint8]:
    numbers = (deviation * rng.standard_normal(count)).astype("<f4")
    if type_name == "F16":
        return numbers.astype("<f2").view(np.uint8).reshape(count, 2)
    raw = numbers.view(np.uint8).reshape(count, 4)
    return raw[:, 2:] if type_name == "BF16" else raw


def main(arguments: list[str] | None = None) -> int:
    """Write one generated model from the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.synthetic", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    size = write_model(given.path, given.name, given.seed)
    sys.stdout.write(f"{given.path}: {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
