"""The fixed haiku of a reference model, by transformers in float32 on the dequantized weights.

    python -m tests.goldens.make_haiku_goldens MODEL.gguf GOLDEN.json

Loads the GGUF file, its tokenizer and its chat template with transformers alone, renders the fixed
question as a conversation, and keeps the greedy answer: token ids, each token's margin (best minus
second-best logit) and the range of its logits. Needs the extra `oracle`. The goldens of the
reference models lie at suites/goldens/haiku/NAME.json.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.haiku import FIXED_QUESTION

N_TOKENS = 48
DECIMALS = 4


@torch.inference_mode()
def greedy(model: Any, prompt_ids: list[int]) -> dict[str, Any]:
    """The greedy answer up to its end or `N_TOKENS`, with margins and logit ranges."""
    ids, cache = torch.tensor([prompt_ids]), None
    completion: list[int] = []
    margins: list[float] = []
    ranges: list[float] = []
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    while len(completion) < N_TOKENS and not ends & set(completion):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1].float()
        best = torch.topk(logits, 2)
        completion.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), DECIMALS))
        ranges.append(round(float(logits.max() - logits.min()), DECIMALS))
        ids = torch.tensor([[completion[-1]]])
    return {"completion_ids": completion, "margins": margins, "logit_range": ranges}


def main(model_path: str, out_path: str) -> None:
    """Write the golden of a GGUF file."""
    path = Path(model_path)
    where = {"gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, **where
    )
    question = [{"role": "user", "content": FIXED_QUESTION}]
    rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer.encode(rendered, add_special_tokens=False)
    golden = {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
        "question": FIXED_QUESTION,
        "prompt_ids": prompt_ids,
        **greedy(loaded.eval(), prompt_ids),
    }
    Path(out_path).write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
