"""White-box probes: raw numbers of the engine's parts as one JSON object, never a verdict.

`haikugate-engine probe NAME` prints `{"probe", "version", "device", "cases": [...]}`.
"""

import importlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Case = dict[str, Any]


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe may be told; each uses what it needs."""

    device: str = "cpu"
    model: Path | None = None
    texts: Path | None = None
    token_ids: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    architectures: tuple[str, ...] = ()
    seed: int = 0


PROBES: dict[str, str] = {
    "api": "engine.probes.api",
    "dequant": "engine.probes.dequant",
    "products": "engine.probes.products",
    "gguf-refusals": "engine.probes.gguf_refusals",
    "gpt-oss-parts": "engine.probes.gpt_oss_parts",
    "tokenizer": "engine.probes.tokenizer",
    "adapters": "engine.probes.adapters",
    "logits": "engine.probes.logits",
    "sampler": "engine.probes.sampler",
    "mxfp4": "engine.probes.mxfp4",
    "kernels-compile": "engine.backends.cuda_compile",
    "kernels-api": "engine.backends.cuda_launchers",
    "kernels": "engine.backends.cuda_kernels_probe",
    "cuda-memory": "engine.backends.cuda_memory_probe",
}
"""Module of each probe; it has `cases(options) -> list[Case]`."""


def run_probe(name: str, options: ProbeOptions) -> dict[str, Any]:
    """The probe's numbers; an EngineError or ValueError says what it lacks."""
    module = importlib.import_module(PROBES[name])
    cases: list[Case] = module.cases(options)
    return {
        "probe": name,
        "version": version("haikugate"),
        "device": options.device,
        "cases": cases,
    }
