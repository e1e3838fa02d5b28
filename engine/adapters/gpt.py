"""GPT-2 and GPT-OSS.

GPT-2 (Radford et al., 2019): LayerNorm, learned positions, multi-head attention, GELU. GPT-OSS
(OpenAI, 2025): RMSNorm, YaRN RoPE, grouped queries with sinks, a sliding window on even layers,
mixture of experts. Shapes: T tokens, W width, H heads, K key-value heads of D dimensions, F hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from engine.adapters.rope_frequencies import inverse_frequencies, magnitude
from engine.adapters.weights import Weights
from engine.config import ModelConfig
from engine.gguf import Tensor
from engine.program import (
    Add,
    AddPosition,
    Attention,
    Builder,
    Embed,
    Gelu,
    KvShape,
    LayerNorm,
    Linear,
    MixtureOfExperts,
    Program,
    RmsNorm,
    Rope,
    Value,
)


class GPTAdapter:
    """Two architectures that share names and little else: each has its own forward pass."""

    name = "GPTAdapter"
    architectures = ("gpt2", "gpt-oss")

    def program(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Program:
        """The forward pass; raises ModelLoadError for a missing or mis-shaped tensor."""
        return FORWARD[config.architecture](config, Weights(tensors)).program()


class _Forward(ABC):
    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.build = Builder()

    def program(self) -> Program:
        c, build = self.config, self.build
        x = self.embed()  # [T, W]
        for layer in range(c.n_layers):
            x = build.emit(Add(x, x, self.attention(x, f"blk.{layer}", layer)))
            x = build.emit(Add(x, x, self.feed_forward(x, f"blk.{layer}")))
        body = build.take()
        h = self.norm(x, "output_norm")
        output = self.weights.head(c.vocab_size, c.width)
        logits = build.emit(Linear(build.value(c.vocab_size), h, output))  # [rows, vocab]
        self.weights.require_all_read(c.architecture)
        kv = KvShape(c.n_layers, c.n_kv_heads, c.head_dim)
        return Program(body, build.take(), build.widths, x, logits, kv)

    def embed(self) -> Value:
        table = self.weights.require("token_embd.weight", self.config.vocab_size, self.config.width)
        return self.build.emit(Embed(self.build.value(self.config.width), table))

    @abstractmethod
    def norm(self, x: Value, name: str) -> Value: ...

    @abstractmethod
    def attention(self, x: Value, block: str, layer: int) -> Value: ...

    @abstractmethod
    def feed_forward(self, x: Value, block: str) -> Value: ...

    def linear(self, x: Value, rows: int, name: str) -> Value:
        weight = self.weights.require(f"{name}.weight", rows, x.width)
        bias = self.weights.vector(f"{name}.bias", rows)
        return self.build.emit(Linear(self.build.value(rows), x, weight, bias))


class _Gpt2(_Forward):
    def embed(self) -> Value:
        c = self.config
        x = super().embed()
        positions = self.weights.require("position_embd.weight", c.context_length, c.width)
        return self.build.emit(AddPosition(x, positions))

    def norm(self, x: Value, name: str) -> Value:
        width = self.config.width
        weight = self.weights.vector(f"{name}.weight", width)
        bias = self.weights.vector(f"{name}.bias", width)
        out = self.build.value(width)
        return self.build.emit(LayerNorm(out, x, weight, bias, self.config.norm_eps))

    def attention(self, x: Value, block: str, layer: int) -> Value:
        c, width = self.config, self.config.width
        h = self.norm(x, f"{block}.attn_norm")
        fused = self.linear(h, 3 * width, f"{block}.attn_qkv")  # [T, 3W]
        attended = self.build.emit(
            Attention(
                out=self.build.value(width),
                q=fused.columns(0, width),
                k=fused.columns(width, 2 * width),
                v=fused.columns(2 * width, 3 * width),
                layer=layer,
                n_heads=c.n_heads,
                n_kv_heads=c.n_kv_heads,
                head_dim=c.head_dim,
                scale=c.head_dim**-0.5,
            )
        )  # [T, W]
        return self.linear(attended, width, f"{block}.attn_output")  # [T, W]

    def feed_forward(self, x: Value, block: str) -> Value:
        c = self.config
        h = self.norm(x, f"{block}.ffn_norm")
        hidden = self.linear(h, c.ffn_width, f"{block}.ffn_up")  # [T, F]
        hidden = self.build.emit(Gelu(hidden, hidden))
        return self.linear(hidden, c.width, f"{block}.ffn_down")  # [T, W]


class _GptOss(_Forward):
    def norm(self, x: Value, name: str) -> Value:
        weight = self.weights.vector(f"{name}.weight", self.config.width)
        out = self.build.value(self.config.width)
        return self.build.emit(RmsNorm(out, x, weight, self.config.norm_eps))

    def attention(self, x: Value, block: str, layer: int) -> Value:
        c = self.config
        n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        h = self.norm(x, f"{block}.attn_norm")
        q = self.rope(self.linear(h, n_q, f"{block}.attn_q"), c.n_heads)  # [T, H·D]
        k = self.rope(self.linear(h, n_kv, f"{block}.attn_k"), c.n_kv_heads)  # [T, K·D]
        v = self.linear(h, n_kv, f"{block}.attn_v")  # [T, K·D]
        attended = self.build.emit(
            Attention(
                out=self.build.value(n_q),
                q=q,
                k=k,
                v=v,
                layer=layer,
                n_heads=c.n_heads,
                n_kv_heads=c.n_kv_heads,
                head_dim=c.head_dim,
                scale=c.head_dim**-0.5,
                window=c.sliding_window if layer % 2 == 0 else None,
                sinks=self.weights.vector(f"{block}.attn_sinks.weight", c.n_heads),
            )
        )  # [T, H·D]
        return self.linear(attended, c.width, f"{block}.attn_output")  # [T, W]

    def rope(self, x: Value, n_heads: int) -> Value:
        c = self.config
        frequencies = inverse_frequencies(c)
        return self.build.emit(Rope(x, n_heads, c.head_dim, "half", frequencies, magnitude(c)))

    def feed_forward(self, x: Value, block: str) -> Value:
        c, require, vector = self.config, self.weights.require, self.weights.vector
        n, hidden = c.n_experts, c.expert_ffn_width
        h = self.norm(x, f"{block}.post_attention_norm")
        return self.build.emit(
            MixtureOfExperts(
                out=self.build.value(c.width),
                x=h,
                router=require(f"{block}.ffn_gate_inp.weight", n, c.width),
                router_bias=vector(f"{block}.ffn_gate_inp.bias", n),
                gate=require(f"{block}.ffn_gate_exps.weight", n, hidden, c.width),
                gate_bias=vector(f"{block}.ffn_gate_exps.bias", n, hidden),
                up=require(f"{block}.ffn_up_exps.weight", n, hidden, c.width),
                up_bias=vector(f"{block}.ffn_up_exps.bias", n, hidden),
                down=require(f"{block}.ffn_down_exps.weight", n, c.width, hidden),
                down_bias=vector(f"{block}.ffn_down_exps.bias", n, c.width),
                n_experts=n,
                top_k=c.n_experts_used,
                hidden=hidden,
                kind="clamped_swiglu",
            )
        )  # [T, W]


FORWARD: Mapping[str, Callable[[ModelConfig, Weights], _Forward]] = {
    "gpt2": _Gpt2,
    "gpt-oss": _GptOss,
}
