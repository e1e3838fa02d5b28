"""Every architecture agrees with transformers in float32 on tiny random models."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

import torch

from engine.sampler import SamplingParams
from tests.oracle import tiny_models
from tests.oracle.tiny_models import VOCABULARY, Shape

pytestmark = pytest.mark.filterwarnings("ignore")

LOGIT_BOUND = 1e-3
N_POSITIONS = 150

CASES = {
    "llama": Shape("llama"),
    "llama-mha-80": Shape("llama", n_heads=3, n_kv_heads=3, head_dim=80),
    "llama-group-3-64": Shape("llama", n_heads=9, n_kv_heads=3, head_dim=64),
    "llama-3.1-rope": Shape("llama", head_dim=64, original_context=64, rope_type="llama3"),
    "qwen2-group-7-64": Shape("qwen2", n_heads=7, n_kv_heads=1, head_dim=64),
    "qwen2-128": Shape("qwen2", n_heads=4, n_kv_heads=2, head_dim=128),
    "phi3-96": Shape("phi3", n_heads=2, n_kv_heads=2, head_dim=96),
    "phi3-window": Shape("phi3", n_heads=4, n_kv_heads=4, head_dim=32, window=37),
    "gpt2": Shape("gpt2", n_heads=4, n_kv_heads=4, head_dim=16),
    "gpt-oss": Shape("gpt-oss", n_heads=8, n_kv_heads=1, head_dim=64, window=128),
    "gpt-oss-window-yarn": Shape(
        "gpt-oss", n_heads=4, n_kv_heads=2, head_dim=32, window=20, original_context=64
    ),
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: Any, tmp_path_factory: Any) -> Any:
    shape = CASES[request.param]
    model = tiny_models.build(shape)
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    tiny_models.write(model, shape, path)
    runtime = tiny_models.load(path)
    yield model, runtime
    runtime.close()


def checkpoint() -> None:
    return


def test_logits_stay_within_the_bound(pair: Any) -> None:
    model, runtime = pair
    ids = np.random.default_rng(1).integers(0, VOCABULARY, N_POSITIONS).tolist()
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    got = runtime.logits(ids, checkpoint)
    limit = LOGIT_BOUND * (wanted.max() - wanted.min())
    assert np.abs(got - wanted).max() <= limit


def test_greedy_tokens_are_the_same(pair: Any) -> None:
    model, runtime = pair
    ids = np.random.default_rng(2).integers(0, VOCABULARY, 70).tolist()
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, ids, checkpoint)
    stream = runtime.tokens(sequence, SamplingParams(seed=0, temperature=0.0), checkpoint)
    got = [next(stream).token_id for _ in range(12)]
    sequence.close()
    with torch.inference_mode():
        logits = model(torch.tensor([ids + got])).logits[0].numpy()
    for step, token_id in enumerate(got):
        row = logits[len(ids) - 1 + step]
        assert row.max() - row[token_id] <= LOGIT_BOUND * (row.max() - row.min())


def test_prefill_and_decode_agree_bit_for_bit(pair: Any) -> None:
    _, runtime = pair
    ids = np.random.default_rng(3).integers(0, VOCABULARY, 140).tolist()
    rows = runtime.logits(ids, checkpoint)
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, ids[:65], checkpoint)
    for at in range(65, 140):
        runtime.prefill(sequence, ids[at : at + 1], checkpoint)
        assert np.array_equal(sequence.logits, rows[at])
    sequence.close()
