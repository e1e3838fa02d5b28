"""Gate 2: every architecture against goldens of an independent implementation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.launch import LaunchEngine
from harness.observation import Observe

GOLDENS = Path(__file__).parent / "goldens" / "tiny"
CHECKS = {
    "tiny-llama-f32": "G2-LLAMA",
    "tiny-qwen2-f32": "G2-QWEN2",
    "tiny-phi3-f32": "G2-PHI3",
    "tiny-gpt2-f32": "G2-GPT2",
    "tiny-gpt-oss-f32": "G2-GPTOSS",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.check(id_)) for name, id_ in CHECKS.items()]
)
def test_logits_and_greedy_tokens(
    name: str,
    generated_model: Callable[[str], Path],
    launch_engine: LaunchEngine,
    observe: Observe,
) -> None:
    golden: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    engine = launch_engine(model=generated_model(name))
    forced, greedy = golden["forced"], golden["greedy"]
    observe(
        golden=golden,
        health=engine.client.health(),
        forced=engine.client.score(forced["prompt_ids"], forced["completion_ids"]),
        greedy=engine.client.execute(
            prompt_ids=greedy["prompt_ids"],
            max_tokens=len(greedy["completion_ids"]),
            temperature=0.0,
            logprobs=len(greedy["top"][0]),
        ),
        model_sha256=engine.model_sha256,
    )
