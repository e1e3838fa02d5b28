"""Goldens of the generated tiny models, by transformers in float32.

    python -m tests.goldens.make_tiny_goldens suites/goldens/tiny

Needs the extra `oracle`. Each architecture's F32 model of seed 0 is generated, read with the `gguf`
package and put into the class of transformers. A golden holds `forced`: ids that the model is made
to read, each with its logprob, the model's own choice, its margin over the id, and the range of the
logits (largest minus smallest); and `greedy`: its own completion of a prompt, each token with its
margin over the second best and the best logprobs.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from engine.synthetic import FLOAT, write_model
from tests.oracle.tiny_models import Shape, tensors

SEED = 0
N_PROMPT, N_FORCED, N_GREEDY, N_TOP = 30, 120, 24, 10
DECIMALS = 5
CLEAR_RATIO = 0.004
"""A greedy golden's margins exceed this share of the logits' range: no tie is among them."""

Key = Callable[[str], Any]


def _common(key: Key) -> dict[str, Any]:
    return {
        "vocab_size": key("vocab_size"),
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": key("rope.freq_base")},
        "attn_implementation": "eager",
        "pad_token_id": 0,
    }


def _llama(key: Key) -> Any:
    config = transformers.LlamaConfig(
        **_common(key), head_dim=key("attention.key_length"), tie_word_embeddings=True
    )
    return transformers.LlamaForCausalLM(config)


def _qwen2(key: Key) -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**_common(key), tie_word_embeddings=False)
    )


def _phi3(key: Key) -> Any:
    common = _common(key)
    common["rope_parameters"]["partial_rotary_factor"] = 1.0
    window = key("attention.sliding_window")
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**common, sliding_window=window))


def _gpt2(key: Key) -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(  # type: ignore[call-arg]
            vocab_size=key("vocab_size"), n_positions=key("context_length"),
            n_embd=key("embedding_length"), n_layer=key("block_count"),
            n_head=key("attention.head_count"), n_inner=key("feed_forward_length"),
            layer_norm_epsilon=key("attention.layer_norm_epsilon"), attn_implementation="eager",
        )
    )  # fmt: skip


def _gpt_oss(key: Key) -> Any:
    rope = {
        "rope_type": "yarn", "rope_theta": key("rope.freq_base"), "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False, "factor": key("rope.scaling.factor"),
        "original_max_position_embeddings": key("rope.scaling.original_context_length"),
    }  # fmt: skip
    config = transformers.GptOssConfig(
        **{**_common(key), "rope_parameters": rope}, head_dim=key("attention.key_length"),
        num_local_experts=key("expert_count"), num_experts_per_tok=key("expert_used_count"),
        sliding_window=key("attention.sliding_window"),
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


_MODELS: dict[str, Callable[[Key], Any]] = {
    "llama": _llama, "qwen2": _qwen2, "phi3": _phi3, "gpt2": _gpt2, "gpt-oss": _gpt_oss,
}  # fmt: skip


def oracle(path: Path) -> Any:
    """transformers' model with the weights of a GGUF file, every number of them assigned."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()

    def key(name: str) -> Any:
        return reader.fields[f"{architecture}.{name}"].contents()

    model = _MODELS[architecture](key).eval().float()
    heads = (key("attention.head_count"), key("attention.head_count_kv"))
    weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    places = tensors(model, Shape(architecture, *heads))
    if weights.keys() != places.keys():
        raise SystemExit(f"{path}: {sorted(weights.keys() ^ places.keys())} fit nowhere")
    for name, place in places.items():
        if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            _assign_rotary(model, name, weights[name], heads)
        else:
            place[...] = weights[name].reshape(place.shape)
    return model


def _assign_rotary(model: Any, name: str, weight: Any, heads: tuple[int, int]) -> None:
    """GGUF's adjacent rotary pairs back to halves."""
    _, layer, kind, _ = name.split(".")
    halves = weight.reshape(heads[kind == "attn_k"], -1, 2, weight.shape[-1]).swapaxes(1, 2)
    module = model.model.layers[int(layer)].self_attn.get_submodule(f"{kind[-1]}_proj")
    module.weight.detach().numpy()[...] = halves.reshape(weight.shape)


@torch.inference_mode()
def _logits(model: Any, ids: list[int]) -> Any:
    return model(torch.tensor([ids])).logits[0].double().numpy()


def _logprobs(row: Any) -> Any:
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def _round(value: float) -> float:
    return round(float(value), DECIMALS)


def forced(model: Any, ids: list[int]) -> dict[str, Any]:
    """What the model says of each id after the prompt."""
    rows = _logits(model, ids)[N_PROMPT - 1 : -1]
    completion = ids[N_PROMPT:]
    return {
        "prompt_ids": ids[:N_PROMPT],
        "completion_ids": completion,
        "logprobs": [
            _round(_logprobs(row)[id_]) for row, id_ in zip(rows, completion, strict=True)
        ],
        "argmax_ids": [int(row.argmax()) for row in rows],
        "margins": [_round(np.sort(row)[-1] - np.sort(row)[-2]) for row in rows],
        "logit_range": [_round(row.max() - row.min()) for row in rows],
    }


def greedy(model: Any, prompt_ids: list[int], eos_ids: set[int]) -> dict[str, Any] | None:
    """The model's own tokens; None if one is close to a tie or ends the text."""
    ids, top, ranges = list(prompt_ids), [], []
    for _ in range(N_GREEDY):
        row = _logits(model, ids)[-1]
        best = np.argsort(-row)[:N_TOP]
        span = row.max() - row.min()
        if row[best[0]] - row[best[1]] < CLEAR_RATIO * span or int(best[0]) in eos_ids:
            return None
        logprobs = _logprobs(row)
        top.append([[int(id_), _round(logprobs[id_])] for id_ in best])
        ranges.append(_round(span))
        ids.append(int(best[0]))
    completion = ids[len(prompt_ids) :]
    return {
        "prompt_ids": prompt_ids, "completion_ids": completion, "top": top, "logit_range": ranges
    }  # fmt: skip


def golden(name: str, path: Path) -> dict[str, Any]:
    """The goldens of one generated model."""
    write_model(path, name, SEED)
    model = oracle(path)
    n_tokens = model.config.vocab_size
    rng = np.random.default_rng(SEED)
    found = None
    while found is None:
        found = greedy(
            model,
            rng.integers(300, n_tokens - 16, N_PROMPT).tolist(),
            set(range(n_tokens - 10, n_tokens)),
        )
    return {
        "model": name,
        "seed": SEED,
        "architecture": FLOAT[name].architecture,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
        "forced": forced(model, rng.integers(0, n_tokens, N_PROMPT + N_FORCED).tolist()),
        "greedy": found,
    }


def main(out: str) -> None:
    """Write one file for each architecture."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in FLOAT:
            made = golden(name, Path(folder) / f"{name}.gguf")
            text = json.dumps(made, separators=(",", ":"))
            (Path(out) / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
