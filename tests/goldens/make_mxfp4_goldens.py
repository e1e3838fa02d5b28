"""Makes suites/goldens/mxfp4.json: the parts of a GPT-OSS layer, by transformers in float32.

    python -m tests.goldens.make_mxfp4_goldens suites/goldens/mxfp4.json

Needs the extra `oracle`. The model is that of the engine's probe `gpt-oss-parts`, dequantized by
the `gguf` package; every part reads the embeddings of the probe's tokens.
"""

import base64
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.probes.gpt_oss_parts import MODEL, TOKEN_IDS
from engine.synthetic import write_model
from tests.goldens.make_tiny_goldens import SEED, oracle


@torch.inference_mode()
def parts(model: Any) -> dict[str, Any]:
    """float32[tokens, width] by part."""
    layer, ids = model.model.layers[0], torch.tensor([list(TOKEN_IDS)])
    x = model.model.embed_tokens(ids)
    attended: list[Any] = []
    hook = layer.self_attn.register_forward_hook(lambda _m, _i, out: attended.append(out[0]))
    model(ids)
    hook.remove()
    h = layer.post_attention_layernorm(x)
    router = layer.mlp.router
    return {
        "product": layer.self_attn.q_proj(x)[0],
        "attention": attended[0][0],
        "router": torch.nn.functional.linear(h, router.weight, router.bias)[0],
        "experts": layer.mlp(h)[0][0],
        "head": model.lm_head(model.model.norm(x))[0],
    }


def main(out: str) -> None:
    """Write the goldens."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, MODEL, SEED)
        made = parts(oracle(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    golden = {
        "model_sha256": digest,
        "seed": SEED,
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
        "token_ids": list(TOKEN_IDS),
        "parts": {
            name: {
                "width": values.shape[-1],
                "float32_base64": base64.b64encode(values.float().numpy().tobytes()).decode(),
            }
            for name, values in made.items()
        },
    }
    Path(out).write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
