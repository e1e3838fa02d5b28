"""The reference engine as an in-process measurement backend (entry point `haikugate.backends`)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import flops
from engine.backends import LoadOptions, Runtime
from engine.sampler import SamplingParams
from engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generation:
    """One request: token counts, and monotonic nanoseconds of sending and of each token."""

    prompt_tokens: int
    completion_tokens: int
    sent_ns: int
    token_ns: tuple[int, ...]


class NativeBackend:
    """One model on one device, driven without HTTP; option `device` as in `serve --device`."""

    takes_files = True

    def load(self, model: str, options: Mapping[str, str]) -> None:
        """Load the GGUF file at this path; raises ModelLoadError or InsufficientMemory."""
        from engine.loading import load_model

        self._loaded = load_model(Path(model), LoadOptions(device=options.get("device", "cpu")))
        self._runtime: Runtime = self._loaded.runtime
        self._tokenizer: Tokenizer = self._loaded.tokenizer

    def generate(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int
    ) -> Generation:
        """Prefill and decode up to max_tokens, past no end-of-sequence token."""
        sent_ns = time.monotonic_ns()
        prompt_ids = self._tokenizer.encode(prompt, add_special=True)
        sequence = self._runtime.open_sequence()
        try:
            self._runtime.prefill(sequence, prompt_ids, _never_stop)
            sampling = SamplingParams(seed=seed, temperature=temperature)
            token_ns = []
            for token in self._runtime.tokens(sequence, sampling, _never_stop):
                if token.token_id in self._tokenizer.eos_ids:
                    break
                token_ns.append(time.monotonic_ns())
                if len(token_ns) == max_tokens:
                    break
        finally:
            sequence.close()
        return Generation(len(prompt_ids), len(token_ns), sent_ns, tuple(token_ns))

    def flops(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        """Operations of prefill and of decode, counted from the loaded program."""
        program = self._runtime.program
        return (
            flops.prefill_flops(program, prompt_tokens),
            flops.decode_flops(program, prompt_tokens, completion_tokens),
        )

    def close(self) -> None:
        """Free the model."""
        self._loaded.close()


def _never_stop() -> None:
    return
