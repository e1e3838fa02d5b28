"""MXFP4 micro-goldens: parts of a GPT-OSS layer on the CPU's kernels, beside float64.

Each part is a small program over a generated model whose matrices are MXFP4 (the router's is F32,
as published); its input is the normalized embeddings of random token ids. The reference takes the
dequantized weights, so what is measured is the error of the arithmetic.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backends import LoadOptions, cpu
from engine.errors import InvalidRequest
from engine.gguf import GGUFFile
from engine.probe import Case, ProbeOptions
from engine.program import (
    Add,
    Attention,
    Builder,
    Embed,
    KvShape,
    Linear,
    MixtureOfExperts,
    Program,
    RmsNorm,
    Value,
)
from engine.synthetic import TINY, write_shape

_N_TOKENS = 96
_VOCAB_SIZE = 640
_SHAPE = replace(
    TINY["tiny-gpt-oss"], types={"default": "MXFP4"}, n_layers=1, vocab_size=_VOCAB_SIZE
)
_HEADS, _KV_HEADS, _DIM = _SHAPE.n_heads, _SHAPE.n_kv_heads, _SHAPE.head_dim
_WINDOW, _SCALE = _SHAPE.sliding_window, _SHAPE.head_dim**-0.5
_EMBEDDING, _NORM, _OUTPUT = "token_embd.weight", "output_norm.weight", "output.weight"

Floats = NDArray[np.float64]
Weights = Mapping[str, Floats]
Emit = Callable[[Builder, Value], Value]


def _twice(build: Builder, x: Value) -> Value:
    """Takes rows from the body to the head; the relative error stays as it is."""
    return build.emit(Add(build.value(x.width), x, x))


def _same(_build: Builder, x: Value) -> Value:
    return x


@dataclass(frozen=True)
class _Part:
    """Operations of a program's body and head, what float64 makes of x, the tensors it needs."""

    name: str
    tensors: tuple[str, ...]
    reference: Callable[[Floats, Weights], Floats]
    body: Emit = _same
    head: Emit = _twice


def cases(options: ProbeOptions) -> list[Case]:
    """One case a part, the largest and the root-mean-square number of error and reference."""
    if options.device != "cpu":
        raise InvalidRequest("device", "probe mxfp4 measures the CPU's kernels: --device cpu")
    with tempfile.TemporaryDirectory(prefix="haikugate-") as folder:
        path = Path(folder) / "mxfp4.gguf"
        write_shape(path, _SHAPE, "mxfp4", options.seed)
        with GGUFFile.open(path) as file:
            return [_case(file, part, options.seed) for part in _PARTS]


def _case(file: GGUFFile, part: _Part, seed: int) -> Case:
    weights = {
        name: np.asarray(tensor.dequantize(), np.float64) for name, tensor in file.tensors.items()
    }
    ids = np.random.default_rng(seed).integers(0, _SHAPE.width, _N_TOKENS).tolist()
    wanted = part.reference(_normalized(weights[_EMBEDDING][ids], weights), weights)
    runtime = cpu.load(file, _program(part), LoadOptions(), _silent)
    try:
        got = runtime.logits(ids, _go_on).astype(np.float64)
    finally:
        runtime.close()
    return {
        "part": part.name,
        "types": {name: file.tensors[name].type for name in part.tensors},
        "shape": list(got.shape),
        "max_error": float(np.abs(got - wanted).max()),
        "max_reference": float(np.abs(wanted).max()),
        "rms_error": float(np.sqrt(((got - wanted) ** 2).mean())),
        "rms_reference": float(np.sqrt((wanted**2).mean())),
    }


def _program(part: _Part) -> Program:
    build = Builder()
    x = build.emit(Embed(build.value(_SHAPE.width), _EMBEDDING))
    x = build.emit(RmsNorm(build.value(_SHAPE.width), x, _NORM, _SHAPE.norm_eps))
    y = part.body(build, x)
    body = build.take()
    logits = part.head(build, y)
    kv = KvShape(1, _KV_HEADS, _DIM)
    return Program(body, build.take(), build.widths, y, logits, kv)


def _normalized(x: Floats, w: Weights) -> Floats:
    scale = np.sqrt((x * x).mean(-1, keepdims=True) + _SHAPE.norm_eps)
    return np.asarray(x / scale * w[_NORM], np.float64)


def _product(name: str, x: Floats, w: Weights) -> Floats:
    return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"], np.float64)


def _linear(build: Builder, x: Value, rows: int, name: str) -> Value:
    return build.emit(Linear(build.value(rows), x, f"{name}.weight", f"{name}.bias"))


def _gemm(build: Builder, x: Value) -> Value:
    return _linear(build, x, _HEADS * _DIM, "blk.0.attn_q")


def _gemm_reference(x: Floats, w: Weights) -> Floats:
    return 2 * _product("blk.0.attn_q", x, w)


def _attention(build: Builder, x: Value) -> Value:
    q, k, v = (
        _linear(build, x, heads * _DIM, f"blk.0.attn_{name}")
        for name, heads in (("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS))
    )
    attended = build.emit(
        Attention(
            out=build.value(_HEADS * _DIM),
            q=q,
            k=k,
            v=v,
            layer=0,
            n_heads=_HEADS,
            n_kv_heads=_KV_HEADS,
            head_dim=_DIM,
            scale=_SCALE,
            window=_WINDOW,
            sinks="blk.0.attn_sinks.weight",
        )
    )
    return _linear(build, attended, _SHAPE.width, "blk.0.attn_output")


def _attention_reference(x: Floats, w: Weights) -> Floats:
    q, k, v = (_product(f"blk.0.attn_{n}", x, w).reshape(len(x), -1, _DIM) for n in "qkv")
    back = np.arange(len(x))[:, None] - np.arange(len(x))
    seen = (back >= 0) & (back < _WINDOW)
    out = np.empty_like(q)
    for head, sink in enumerate(w["blk.0.attn_sinks.weight"]):
        group = head * _KV_HEADS // _HEADS
        grown = np.where(seen, np.exp(_SCALE * q[:, head] @ k[:, group].T), 0.0)
        out[:, head] = grown @ v[:, group] / (grown.sum(-1, keepdims=True) + np.exp(sink))
    return 2 * _product("blk.0.attn_output", out.reshape(len(x), -1), w)


def _experts(build: Builder, x: Value) -> Value:
    names = {"router": "gate_inp", "gate": "gate_exps", "up": "up_exps", "down": "down_exps"}
    tensors = {field: f"blk.0.ffn_{name}.weight" for field, name in names.items()}
    biases = {f"{field}_bias": f"blk.0.ffn_{name}.bias" for field, name in names.items()}
    return build.emit(
        MixtureOfExperts(
            out=build.value(_SHAPE.width),
            x=x,
            **tensors,
            **biases,
            n_experts=_SHAPE.n_experts,
            top_k=_SHAPE.n_experts_used,
            hidden=_SHAPE.ffn_width,
            kind="clamped_swiglu",
        )
    )


def _experts_reference(x: Floats, w: Weights) -> Floats:
    router = _product("blk.0.ffn_gate_inp", x, w)
    out = np.zeros_like(x)
    for token, row in enumerate(x):
        chosen = np.argsort(-router[token], kind="stable")[: _SHAPE.n_experts_used]
        grown = np.exp(router[token, chosen] - router[token, chosen].max())
        for expert, share in zip(chosen, grown / grown.sum(), strict=True):
            out[token] += share * _expert(row, w, int(expert))
    return 2 * out


def _expert(x: Floats, w: Weights, expert: int) -> Floats:
    def product(name: str, y: Floats) -> Floats:
        weight, bias = w[f"blk.0.ffn_{name}_exps.weight"], w[f"blk.0.ffn_{name}_exps.bias"]
        return np.asarray(weight[expert] @ y + bias[expert], np.float64)

    gate = np.minimum(product("gate", x), 7.0)
    up = np.clip(product("up", x), -7.0, 7.0)
    return product("down", gate / (1 + np.exp(-1.702 * gate)) * (up + 1))


def _head(build: Builder, x: Value) -> Value:
    return build.emit(Linear(build.value(_VOCAB_SIZE), x, _OUTPUT))


def _head_reference(x: Floats, w: Weights) -> Floats:
    return np.asarray(x @ w[_OUTPUT].T, np.float64)


_QKVO = tuple(f"blk.0.attn_{name}.weight" for name in ("q", "k", "v", "output"))
_EXPERTS = tuple(
    f"blk.0.ffn_{name}.weight" for name in ("gate_inp", "gate_exps", "up_exps", "down_exps")
)
_PARTS = (
    _Part("gemm", _QKVO[:1], _gemm_reference, body=_gemm),
    _Part("attention", _QKVO, _attention_reference, body=_attention),
    _Part("router and experts", _EXPERTS, _experts_reference, body=_experts),
    _Part("head", (_OUTPUT,), _head_reference, head=_head),
)


def _go_on() -> None:
    return


def _silent(_loaded: int, _total: int) -> None:
    return
