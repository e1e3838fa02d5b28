"""What a backend is: a loaded model on one device, with sequences that hold its KV cache.

Everything above this protocol (generate, server, bench) is the same for CPU and CUDA; everything
below it executes a `Program` over quantized weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.program import Program
from engine.sampler import SampledToken, SamplingParams, TokenScore

Checkpoint = Callable[[], None]
"""Called between layers and between tokens; raises Cancelled or InferenceTimeout to stop work."""

Progress = Callable[[int, int], None]
"""Load progress: (bytes_loaded, bytes_total); the first call begins the reading of the text."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes the engine holds on its device, by purpose; `limit_bytes` 0 = no budget."""

    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights, KV and workspace together: what /health reports as vram_bytes_used."""
        return self.weights_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True)
class LoadOptions:
    """Where and within which budget a model is loaded."""

    device: str = "cpu"
    context_length: int = 0
    kv_cache_mb: int = 0
    memory_limit_mb: int = 0
    n_threads: int = 0


class KvSequence(Protocol):
    """One request's KV cache; grows in pages while tokens are added, freed by `close`."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...

    def close(self) -> None: ...


class Runtime(Protocol):
    """A model loaded on one device. One thread at a time may drive it.

    `prefill` raises OutOfMemory when the KV budget is exhausted; so may each step of `tokens`.
    After any exception the caller closes the sequence and the runtime is as good as new.
    """

    program: Program
    vocab_size: int
    context_length: int
    kv_dtype: str
    device: str

    def memory(self) -> MemoryReport: ...

    def device_facts(self) -> dict[str, Any]: ...

    def verify_residency(self) -> None: ...

    def open_sequence(self, *, cache_prompt: bool = False) -> KvSequence: ...

    def prefill(
        self, sequence: KvSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None: ...

    def tokens(
        self, sequence: KvSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]: ...

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], checkpoint: Checkpoint
    ) -> list[TokenScore]: ...

    def logits(self, token_ids: Sequence[int], checkpoint: Checkpoint) -> Any: ...

    def close(self) -> None: ...
