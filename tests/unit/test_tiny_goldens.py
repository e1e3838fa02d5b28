"""The CPU runtime on generated models, beside what transformers said of the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import LoadOptions
from engine.loading import load_model
from engine.sampler import SamplingParams
from engine.synthetic import FLOAT, write_model

GOLDENS = Path(__file__).parents[2] / "suites/goldens/tiny"
LOGIT_BOUND = 1e-3
"""Of the logit range."""


def go_on() -> None:
    return


def logprobs(rows: Any) -> Any:
    shifted = np.asarray(rows, np.float64) - np.max(rows, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def forced_agrees(runtime: Any, forced: dict[str, Any]) -> None:
    prompt_ids, completion = forced["prompt_ids"], forced["completion_ids"]
    assert len(completion) >= 64
    rows = runtime.logits([*prompt_ids, *completion[:-1]], go_on)[len(prompt_ids) - 1 :]
    ours = logprobs(rows)[np.arange(len(rows)), completion]
    spans = np.array(forced["logit_range"])
    assert (np.abs(ours - forced["logprobs"]) <= LOGIT_BOUND * spans).all()
    clear = np.array(forced["margins"]) > 2 * LOGIT_BOUND * spans
    assert clear.mean() > 0.8
    assert np.array_equal(np.argmax(rows, axis=1)[clear], np.array(forced["argmax_ids"])[clear])


def greedy_tokens(runtime: Any, prompt_ids: list[int], count: int) -> list[int]:
    sequence = runtime.open_sequence()
    try:
        runtime.prefill(sequence, prompt_ids, go_on)
        stream = runtime.tokens(sequence, SamplingParams(seed=0, temperature=0.0), go_on)
        return [next(stream).token_id for _ in range(count)]
    finally:
        sequence.close()


@pytest.mark.parametrize("name", FLOAT)
def test_logits_and_greedy_tokens_are_the_oracles(name: str, tmp_path: Path) -> None:
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    write_model(tmp_path / "m.gguf", name, golden["seed"])
    model = load_model(tmp_path / "m.gguf", LoadOptions(n_threads=1))
    try:
        forced_agrees(model.runtime, golden["forced"])
        greedy = golden["greedy"]
        wanted = greedy["completion_ids"]
        assert greedy_tokens(model.runtime, greedy["prompt_ids"], len(wanted)) == wanted
    finally:
        model.close()
