"""Gate 2: tokenizers against golden vectors of the libraries that defined them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.launch import LaunchEngine, RunningEngine
from harness.observation import Exchange, Observe

GOLDENS = Path(__file__).parent / "goldens" / "tokenizers"
CHECKS = {
    "tiny-qwen2": "G2-TOKENIZER-QWEN2",
    "tiny-phi3": "G2-TOKENIZER-PHI3",
    "tiny-gpt2": "G2-TOKENIZER-GPT2",
    "tiny-gpt-oss": "G2-TOKENIZER-GPTOSS",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.check(id_)) for name, id_ in CHECKS.items()]
)
def test_golden_vectors(
    name: str,
    generated_model: Callable[[str], Path],
    launch_engine: LaunchEngine,
    observe: Observe,
) -> None:
    golden = golden_of(name)
    engine = launch_engine(model=generated_model(name))
    observe(golden=golden, model_sha256=engine.model_sha256, **vectors(engine, golden))


@pytest.mark.check("G2-TOKENIZER-SMOLLM2")
def test_golden_vectors_of_the_default_model(engine: RunningEngine, observe: Observe) -> None:
    golden = golden_of("smollm2")
    observe(golden=golden, model_sha256=engine.model_sha256, **vectors(engine, golden))


def golden_of(name: str) -> dict[str, Any]:
    """Texts with their ids, and the digest of the model file they are of."""
    golden: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    return golden


def vectors(engine: RunningEngine, golden: dict[str, Any]) -> dict[str, list[Exchange]]:
    """Every text encoded, and the golden's ids decoded."""
    client = engine.client
    return {
        "encoded": [client.tokenize(case["text"]) for case in golden["cases"]],
        "decoded": [client.detokenize(case["ids"]) for case in golden["cases"]],
    }
