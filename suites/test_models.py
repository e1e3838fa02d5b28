"""Gate 2: the default model against goldens of an independent implementation."""

import json
from pathlib import Path

import pytest

from harness.launch import RunningEngine
from harness.observation import Observe

GOLDENS = Path(__file__).parent / "goldens" / "smollm2-135m-instruct.json"


@pytest.mark.check("G2-DEFAULT-MODEL")
def test_default_model_agrees_with_the_oracle(engine: RunningEngine, observe: Observe) -> None:
    goldens = json.loads(GOLDENS.read_text(encoding="utf-8"))
    observe(
        goldens=goldens,
        scores=[
            engine.client.score(case["prompt_ids"], case["completion_ids"])
            for case in goldens["cases"]
        ],
        model_sha256=engine.model_sha256,
    )
