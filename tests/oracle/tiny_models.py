"""Tiny random models of transformers, written to GGUF with the published names and layouts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from engine.adapters import adapter_for
from engine.backends import LoadOptions, cpu
from engine.config import ModelConfig
from engine.gguf import GGUFFile
from engine.quants import BLOCK_FORMATS
from engine.synthetic import random_blocks

VOCABULARY = 96


@dataclass(frozen=True)
class Shape:
    """What a case varies; width is n_heads · head_dim."""

    architecture: str
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    n_layers: int = 2
    ffn_width: int = 96
    context_length: int = 512
    window: int | None = None
    original_context: int = 512
    rope_type: str = "default"

    @property
    def width(self) -> int:
        return self.n_heads * self.head_dim


def _common(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn_width,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": 1e-5,
        "attn_implementation": "eager",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _default_rope(base: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


def _llama(shape: Shape) -> Any:
    rope = _default_rope(1e4)
    if shape.rope_type == "llama3":
        rope["rope_parameters"] |= {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": shape.original_context,
        }  # fmt: skip
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_common(shape), **rope, head_dim=shape.head_dim)
    )


def _qwen2(shape: Shape) -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**_common(shape), **_default_rope(1e6), tie_word_embeddings=True)
    )


def _phi3(shape: Shape) -> Any:
    rope = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    }
    config = transformers.Phi3Config(**_common(shape), **rope, sliding_window=shape.window)
    return transformers.Phi3ForCausalLM(config)


def _gpt2(shape: Shape) -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=shape.context_length, n_embd=shape.width,
            n_layer=shape.n_layers, n_head=shape.n_heads, attn_implementation="eager",
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _gpt_oss(shape: Shape) -> Any:
    rope = {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": shape.original_context,
    }  # fmt: skip
    config = transformers.GptOssConfig(
        **_common(shape), rope_parameters=rope, head_dim=shape.head_dim, num_local_experts=8,
        num_experts_per_tok=4, sliding_window=shape.window or 128,
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


_MODELS: dict[str, Callable[[Shape], Any]] = {
    "llama": _llama, "qwen2": _qwen2, "phi3": _phi3, "gpt2": _gpt2, "gpt-oss": _gpt_oss,
}  # fmt: skip


def build(shape: Shape, seed: int = 0) -> Any:
    """A model with weights large enough that every part shows in the logits."""
    torch.manual_seed(seed)
    model = _MODELS[shape.architecture](shape).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.6 / weight.shape[-1] ** 0.5 if "embed" not in name else 0.5)
            elif "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 0.3)
    return model


_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.router": "ffn_gate_inp", "ln_1": "attn_norm",
    "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
}  # fmt: skip


def _permuted(weight: Any, n_heads: int) -> Any:
    halves = weight.reshape(n_heads, 2, -1, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _experts(prefix: str, name: str, weight: Any) -> dict[str, Any]:
    kind = "bias" if name.endswith("_bias") else "weight"
    if name.startswith("gate_up"):
        columns = weight if kind == "bias" else weight.swapaxes(1, 2)
        return {
            f"{prefix}.ffn_gate_exps.{kind}": columns[:, 0::2],
            f"{prefix}.ffn_up_exps.{kind}": columns[:, 1::2],
        }
    return {f"{prefix}.ffn_down_exps.{kind}": weight if kind == "bias" else weight.swapaxes(1, 2)}


def tensors(model: Any, shape: Shape) -> dict[str, Any]:
    """The model's weights by GGUF name, float32."""
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if name in _OUTER:
            found[_OUTER[name]] = weight
            continue
        _, _, layer, rest = name.split(".", 3)
        prefix = f"blk.{layer}"
        if rest.startswith("mlp.experts."):
            found |= _experts(prefix, rest.removeprefix("mlp.experts."), weight)
        elif rest == "self_attn.sinks":
            found[f"{prefix}.attn_sinks.weight"] = weight
        else:
            module, _, kind = rest.rpartition(".")
            found |= {
                f"{prefix}.{_layer_name(shape, module)}.{kind}": _layout(shape, module, weight)
            }
    return found


def _layer_name(shape: Shape, module: str) -> str:
    if shape.architecture == "gpt-oss" and module == "post_attention_layernorm":
        return "post_attention_norm"
    return _LAYER[module]


def _layout(shape: Shape, module: str, weight: Any) -> Any:
    if shape.architecture == "llama" and module.endswith(("q_proj", "k_proj")):
        return _permuted(weight, shape.n_heads if "q_proj" in module else shape.n_kv_heads)
    return weight.T if shape.architecture == "gpt2" and weight.ndim == 2 else weight


def _blocks(weight: Any, kind: str) -> Any:
    """The weight in blocks, by the `gguf` package; noise of its size where that cannot quantize."""
    kind_id = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quantize(np.ascontiguousarray(weight), kind_id)
    except NotImplementedError:
        columns = weight.shape[-1]
        n_blocks = weight.size // BLOCK_FORMATS[kind].block_size
        noise = random_blocks(np.random.default_rng(weight.size), kind, columns, n_blocks)
        return noise.reshape(*weight.shape[:-1], -1)


def quantize(model: Any, shape: Shape, kind: str) -> dict[str, Any]:
    """Blocks of every matrix but routers by GGUF name; the model gets the dequantized numbers."""
    found = {}
    for name, weight in tensors(model, shape).items():
        if weight.ndim > 1 and name.endswith(".weight") and "ffn_gate_inp" not in name:
            found[name] = _blocks(weight, kind)
            numbers = gguf.dequantize(found[name], gguf.GGMLQuantizationType[kind])
            weight[...] = numbers.reshape(weight.shape)
            assert np.shares_memory(weight, tensors(model, shape)[name]), name
    return found


def write(
    model: Any, shape: Shape, path: Path, kind: str = "F32", blocks: dict[str, Any] | None = None
) -> None:
    """A GGUF file of the model: every tensor F32, but for the `blocks` of type `kind`."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(
        shape.ffn_width if shape.architecture != "gpt2" else 4 * shape.width
    )
    writer.add_head_count(shape.n_heads)
    if shape.architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(shape.n_kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base({"qwen2": 1e6, "gpt-oss": 150000.0}.get(shape.architecture, 1e4))
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.architecture == "gpt-oss":
        _write_gpt_oss(writer, shape)
    for name, weight in tensors(model, shape).items():
        if blocks and name in blocks:
            kind_id = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, np.ascontiguousarray(blocks[name]), raw_dtype=kind_id)
        else:
            writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
    if shape.rope_type == "llama3":
        pairs = np.arange(0, shape.head_dim, 2) / shape.head_dim
        slowed = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (1e4**-pairs / slowed).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_gpt_oss(writer: Any, shape: Shape) -> None:
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_expert_count(8)
    writer.add_expert_used_count(4)
    writer.add_expert_feed_forward_length(shape.ffn_width)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(shape.original_context)


def load(path: Path) -> cpu.CpuRuntime:
    """The file on the CPU backend; the caller closes it."""
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_file(file)
        program = adapter_for(config).program(config, file.tensors)
        return cpu.load(file, program, LoadOptions(n_threads=2), lambda _done, _total: None)
