"""GPT-OSS by its published equations in NumPy float64, apart from any library's reading of them:
YaRN (arXiv 2309.00071), sinks and windows in attention, routed experts, clamped SwiGLU.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.backends import LoadOptions
from engine.loading import load_model
from engine.synthetic import MODELS, write_model

NAME, N_TOKENS, LOGIT_BOUND = "tiny-gpt-oss-f32", 200, 1e-3
SHAPE = MODELS[NAME]
GROWN = {"ffn_gate_exps.bias": 90, "ffn_up_exps.bias": 90, "attn_sinks.weight": 20}
HEADS, KV, DIM, WINDOW = SHAPE.n_heads, SHAPE.n_kv_heads, SHAPE.head_dim, SHAPE.sliding_window


def rms(x: Any, w: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + SHAPE.norm_eps) * w


def yarn(x: Any) -> Any:
    (factor, original), base, pair = SHAPE.rope_scaling, SHAPE.rope_base, np.arange(DIM // 2)
    low, high = (DIM / 2 * np.log(original / beta / 2 / np.pi) / np.log(base) for beta in (32, 1))
    ramp = np.clip((pair - max(low, 0)) / (min(high, DIM - 1) - max(low, 0)), 0, 1)
    frequency = base ** (-2 * pair / DIM) * (1 - ramp + ramp / factor)
    angle = np.arange(len(x))[:, None, None] * frequency
    cos, sin = (turn(angle) * (0.1 * np.log(factor) + 1) for turn in (np.cos, np.sin))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(h: Any, w: Any, layer: int) -> Any:
    q, k, v = (h @ w[f"attn_{n}.weight"].T + w[f"attn_{n}.bias"] for n in "qkv")
    q, k, v = yarn(q.reshape(-1, HEADS, DIM)), yarn(k.reshape(-1, KV, DIM)), v.reshape(-1, KV, DIM)
    back = np.arange(len(h))[:, None] - np.arange(len(h))
    seen = (back >= 0) & (back < (WINDOW if layer % 2 == 0 else len(h)))
    out = np.empty_like(q)
    for head in range(HEADS):
        group = head * KV // HEADS
        grown = np.where(seen, np.exp(q[:, head] @ k[:, group].T / np.sqrt(DIM)), 0)
        total = grown.sum(-1, keepdims=True) + np.exp(w["attn_sinks.weight"][head])
        out[:, head] = grown @ v[:, group] / total
    return out.reshape(len(h), -1) @ w["attn_output.weight"].T + w["attn_output.bias"]


def experts(h: Any, w: Any) -> Any:
    router, out = h @ w["ffn_gate_inp.weight"].T + w["ffn_gate_inp.bias"], np.zeros_like(h)
    for t, x in enumerate(h):
        chosen = np.argsort(-router[t])[: SHAPE.n_experts_used]
        share = np.exp(router[t, chosen]) / np.exp(router[t, chosen]).sum()
        for e, weight in zip(chosen, share, strict=True):
            g = np.minimum(w["ffn_gate_exps.weight"][e] @ x + w["ffn_gate_exps.bias"][e], 7)
            u = np.clip(w["ffn_up_exps.weight"][e] @ x + w["ffn_up_exps.bias"][e], -7, 7)
            y = g / (1 + np.exp(-1.702 * g)) * (u + 1)
            out[t] += weight * (w["ffn_down_exps.weight"][e] @ y + w["ffn_down_exps.bias"][e])
    return out


def test_logits_agree_with_the_equations_worked_by_hand(tmp_path: Path) -> None:
    write_model(path := tmp_path / "wild.gguf", NAME)
    file = gguf.GGUFReader(path, "r+")
    w = {tensor.name: tensor.data for tensor in file.tensors}
    for name, values in w.items():
        values *= GROWN.get(name[6:], 1)
    file.data.flush()
    ids = np.random.default_rng(6).integers(3, w["token_embd.weight"].shape[0], N_TOKENS)
    x = w["token_embd.weight"][ids].astype(np.float64)
    for layer in range(SHAPE.n_layers):
        own = {n.removeprefix(f"blk.{layer}."): v for n, v in w.items()}
        x = x + attention(rms(x, own["attn_norm.weight"]), own, layer)
        x = x + experts(rms(x, own["post_attention_norm.weight"]), own)
    wanted = rms(x, w["output_norm.weight"]) @ w["output.weight"].T
    model = load_model(path, LoadOptions(n_threads=1))
    got = model.runtime.logits(ids.tolist(), lambda: None)
    model.close()
    assert np.abs(got - wanted).max() <= LOGIT_BOUND * np.ptp(wanted)
