"""Llama, Qwen2 and Phi-3: pre-norm decoders with RMSNorm, RoPE, grouped queries and SwiGLU.

Shapes below: T tokens, W width, H heads and K key-value heads of D dimensions, F hidden units.
"""

from collections.abc import Mapping

from engine.adapters.rope_frequencies import inverse_frequencies, magnitude
from engine.adapters.weights import Weights
from engine.config import ModelConfig
from engine.gguf import Tensor
from engine.program import (
    Add,
    Attention,
    Builder,
    Embed,
    GatedActivation,
    KvShape,
    Linear,
    Program,
    RmsNorm,
    Rope,
    RopePairs,
    Value,
)

ROPE_PAIRS: Mapping[str, RopePairs] = {"llama": "adjacent", "qwen2": "half", "phi3": "half"}


class LlamaAdapter:
    """One forward pass for three architectures that differ in names, biases and fusions."""

    name = "LlamaAdapter"
    architectures = ("llama", "qwen2", "phi3")

    def program(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Program:
        """The forward pass; raises ModelLoadError for a missing or mis-shaped tensor."""
        weights = Weights(tensors)
        return _Forward(config, weights).program()


class _Forward:
    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.build = Builder()
        divisors = weights.factors("rope_freqs.weight", config.rope_dims // 2)
        self.frequencies = inverse_frequencies(config, divisors)

    def program(self) -> Program:
        config, build = self.config, self.build
        table = self.weights.require("token_embd.weight", config.vocab_size, config.width)
        x = build.emit(Embed(build.value(config.width), table))  # [T, W]
        for layer in range(config.n_layers):
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            x = self.residual(x, self.attention(h, layer))
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            x = self.residual(x, self.feed_forward(h, layer))
        body = build.take()
        h = self.norm(x, "output_norm.weight")
        output = self.weights.head(config.vocab_size, config.width)
        logits = build.emit(Linear(build.value(config.vocab_size), h, output))  # [rows, vocab]
        self.weights.require_all_read(config.architecture)
        kv = KvShape(config.n_layers, config.n_kv_heads, config.head_dim)
        return Program(body, build.take(), build.widths, x, logits, kv)

    def norm(self, x: Value, name: str) -> Value:
        weight = self.weights.vector(name, self.config.width)
        return self.build.emit(RmsNorm(self.build.value(x.width), x, weight, self.config.norm_eps))

    def residual(self, x: Value, update: Value) -> Value:
        return self.build.emit(Add(x, x, update))

    def linear(self, x: Value, rows: int, name: str) -> Value:
        weight = self.weights.require(f"{name}.weight", rows, x.width)
        bias = self.weights.optional_vector(f"{name}.bias", rows)
        return self.build.emit(Linear(self.build.value(rows), x, weight, bias))

    def attention(self, h: Value, layer: int) -> Value:
        c = self.config
        q, k, v = self.queries_keys_values(h, layer)  # [T, H·D], [T, K·D], [T, K·D]
        self.rope(q, c.n_heads)
        self.rope(k, c.n_kv_heads)
        attended = self.build.emit(
            Attention(
                out=self.build.value(q.width),
                q=q,
                k=k,
                v=v,
                layer=layer,
                n_heads=c.n_heads,
                n_kv_heads=c.n_kv_heads,
                head_dim=c.head_dim,
                scale=c.head_dim**-0.5,
                window=c.sliding_window,
            )
        )  # [T, H·D]
        return self.linear(attended, c.width, f"blk.{layer}.attn_output")  # [T, W]

    def queries_keys_values(self, h: Value, layer: int) -> tuple[Value, Value, Value]:
        c = self.config
        n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        if c.architecture == "phi3":
            fused = self.linear(h, n_q + 2 * n_kv, f"blk.{layer}.attn_qkv")  # [T, (H + 2K)·D]
            return (
                fused.columns(0, n_q),
                fused.columns(n_q, n_q + n_kv),
                fused.columns(n_q + n_kv, n_q + 2 * n_kv),
            )
        return (
            self.linear(h, n_q, f"blk.{layer}.attn_q"),
            self.linear(h, n_kv, f"blk.{layer}.attn_k"),
            self.linear(h, n_kv, f"blk.{layer}.attn_v"),
        )

    def rope(self, x: Value, n_heads: int) -> None:
        c = self.config
        pairs = ROPE_PAIRS[c.architecture]
        self.build.emit(Rope(x, n_heads, c.head_dim, pairs, self.frequencies, magnitude(c)))

    def feed_forward(self, h: Value, layer: int) -> Value:
        c = self.config
        if c.architecture == "phi3":
            fused = self.linear(h, 2 * c.ffn_width, f"blk.{layer}.ffn_up")  # [T, 2F]: gate, up
            gate = fused.columns(0, c.ffn_width)
            up = fused.columns(c.ffn_width, 2 * c.ffn_width)
        else:
            gate = self.linear(h, c.ffn_width, f"blk.{layer}.ffn_gate")  # [T, F]
            up = self.linear(h, c.ffn_width, f"blk.{layer}.ffn_up")  # [T, F]
        hidden = self.build.value(c.ffn_width)
        self.build.emit(GatedActivation(hidden, gate, up, "silu"))  # [T, F]
        return self.linear(hidden, c.width, f"blk.{layer}.ffn_down")  # [T, W]
