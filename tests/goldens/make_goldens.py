"""Greedy goldens of the default model, by transformers in float32 on the dequantized weights.

    python -m tests.goldens.make_goldens [MODEL.gguf GOLDENS.json]

By default the cached model, and suites/goldens/smollm2-135m-instruct.json. Needs the extra
`oracle`. A golden is one prompt: its token ids, 64 greedy tokens, each token's margin (best minus
second-best logit) and the range of its logits (largest minus smallest).
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from engine.bench import default_model
from engine.chat import ChatTemplate
from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer

OUT = Path(__file__).parents[2] / "suites/goldens/smollm2-135m-instruct.json"
N_TOKENS = 64
DECIMALS = 4

PROMPTS = (
    "The capital of France is", "Once upon a time", "Water boils at", "def fibonacci(n):\n",
    "The three primary colours are", "In 1969, humans first", "My favourite recipe begins with",
    "The theory of relativity says", "To be, or not to be,", "A haiku about autumn:\n",
    "List five animals:\n1.", "Dear Sir or Madam,", "The opposite of hot is", "2 + 2 =",
    "Photosynthesis is the process", "Bonjour, je m'appelle", "SELECT name FROM users WHERE",
    "The quick brown fox", "Why is the sky blue?", "Once the rain had stopped, the old sailor",
)  # fmt: skip
CHATS = (
    "Write a haiku about the sea.", "What is the tallest mountain on Earth?",
    "Explain gravity to a child.", "Give me three tips for better sleep.",
)  # fmt: skip


_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _hub_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
    return f"{_OUTER[parts[0]]}.weight"


def _unpermuted(weight: Any, n_heads: int) -> Any:
    """GGUF's adjacent rotary pairs back to halves."""
    heads = weight.reshape(n_heads, -1, 2, weight.shape[-1])
    return heads.swapaxes(1, 2).reshape(weight.shape)


def llama(path: Path) -> Any:
    """transformers' Llama with a GGUF file's weights, dequantized by the `gguf` package."""
    reader = gguf.GGUFReader(path)

    def key(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    n_heads, n_kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = _unpermuted(weight, n_heads if ".attn_q." in tensor.name else n_kv_heads)
        weights[_hub_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(weight))
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    config = transformers.LlamaConfig(
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def prompts(path: Path) -> list[list[int]]:
    """Token ids of all prompts: plain text, and chats by the model's own template."""
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_file(file)
        chat = ChatTemplate.from_file(file, tokenizer)
    rendered = [chat.render([{"role": "user", "content": text}]) for text in CHATS]
    plain = [tokenizer.encode(text) for text in PROMPTS]
    return plain + [tokenizer.encode(text, parse_special=True) for text in rendered]


@torch.inference_mode()
def greedy(model: Any, prompt_ids: list[int]) -> dict[str, Any]:
    """64 greedy tokens, end-of-sequence ignored, with margins and logit ranges."""
    ids, cache = torch.tensor([prompt_ids]), None
    completion, margins, ranges = [], [], []
    for _ in range(N_TOKENS):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1]
        best = torch.topk(logits, 2)
        completion.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), DECIMALS))
        ranges.append(round(float(logits.max() - logits.min()), DECIMALS))
        ids = torch.tensor([[completion[-1]]])
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion,
        "margins": margins,
        "logit_range": ranges,
    }


def main(model_path: str, out_path: str) -> None:
    """Write the goldens of a GGUF file."""
    torch.set_num_threads(2)
    path = Path(model_path)
    model = llama(path)
    cases = [greedy(model, prompt_ids) for prompt_ids in prompts(path)]
    head = {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
    }
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    Path(out_path).write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(*(sys.argv[1:3] or (str(default_model()), str(OUT))))
