"""Adapters: one class a family of architectures, chosen by the file's own metadata."""

from collections.abc import Mapping
from typing import Protocol

from engine.adapters.gpt import GPTAdapter
from engine.adapters.llama import LlamaAdapter
from engine.config import ModelConfig
from engine.errors import ModelLoadError
from engine.gguf import Tensor
from engine.program import Program


class InferenceAdapter(Protocol):
    """Writes the forward pass of its architectures as a program, for every backend alike."""

    @property
    def name(self) -> str: ...

    @property
    def architectures(self) -> tuple[str, ...]: ...

    def program(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Program: ...


_FAMILIES: tuple[InferenceAdapter, ...] = (LlamaAdapter(), GPTAdapter())

ADAPTERS: Mapping[str, InferenceAdapter] = {
    architecture: family for family in _FAMILIES for architecture in family.architectures
}


def adapter_for(config: ModelConfig) -> InferenceAdapter:
    """The adapter of a model's architecture; ModelLoadError lists the known ones."""
    try:
        return ADAPTERS[config.architecture]
    except KeyError:
        known = ", ".join(ADAPTERS)
        raise ModelLoadError(
            f"architecture: one of {known} wanted, got {config.architecture!r}"
        ) from None
