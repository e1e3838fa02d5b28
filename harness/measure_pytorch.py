"""Measurement backend `pytorch`: transformers in this process (extra `oracle`)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError


@dataclass(frozen=True)
class Generation:
    """One request, token by token; times in monotonic nanoseconds."""

    prompt_tokens: int
    completion_tokens: int
    sent_ns: int
    token_ns: tuple[int, ...]


class PyTorchBackend:
    """A GGUF file (dequantized to float32 by transformers) or a folder of a transformers model."""

    takes_files = True

    def load(self, model: str, options: Mapping[str, str]) -> None:
        """Load the model on option `device` (default cpu); UsageError without the extra."""
        try:
            import torch
            import transformers
        except ImportError:
            raise UsageError("backend pytorch: pip install 'haikugate[oracle]'") from None
        self._torch: Any = torch
        path = Path(model)
        where: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
        if path.is_file():
            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        self._device = options.get("device", "cpu")
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**where)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(**where)
        self._model: Any = loaded.to(self._device).eval()

    def generate(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int
    ) -> Generation:
        """Prefill, then one forward pass a token with its key-value cache."""
        torch = self._torch
        generator = torch.Generator(self._device).manual_seed(seed % 2**63)
        sent_ns = time.monotonic_ns()
        ids = self._tokenizer(prompt, return_tensors="pt").input_ids.to(self._device)
        n_prompt, cache = int(ids.shape[1]), None
        stamps: list[int] = []
        with torch.inference_mode():
            while len(stamps) < max_tokens:
                out = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, logits = out.past_key_values, out.logits[0, -1]
                ids = self._choose(logits, temperature, generator).view(1, 1)
                token_id = int(ids)
                if token_id == self._tokenizer.eos_token_id:
                    break
                stamps.append(time.monotonic_ns())
        return Generation(n_prompt, len(stamps), sent_ns, tuple(stamps))

    def _choose(self, logits: Any, temperature: float, generator: Any) -> Any:
        if temperature == 0.0:
            return logits.argmax()
        probabilities = (logits / temperature).softmax(-1)
        return self._torch.multinomial(probabilities, 1, generator=generator)

    def flops(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        """Two operations a weight and token (embedding left out), attention as scores and sum."""
        config = self._model.config
        weights = sum(p.numel() for p in self._model.parameters())
        weights -= self._model.get_input_embeddings().weight.numel()
        if config.tie_word_embeddings:
            weights += config.vocab_size * config.hidden_size
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        per_key = 4 * config.num_hidden_layers * heads * width
        end = prompt_tokens + max(0, completion_tokens - 1)
        seen_before = prompt_tokens * (prompt_tokens + 1) // 2
        seen_all = end * (end + 1) // 2
        prefill = 2 * weights * prompt_tokens + per_key * seen_before
        decode = 2 * weights * (end - prompt_tokens) + per_key * (seen_all - seen_before)
        return prefill, decode

    def close(self) -> None:
        """Let the model go."""
        self._model = None
