"""Whole models of every block type agree with transformers on the dequantized weights."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

import torch

from engine.quants import BLOCK_FORMATS
from tests.oracle import tiny_models
from tests.oracle.tiny_models import VOCABULARY, Shape

pytestmark = pytest.mark.filterwarnings("ignore")

LOGIT_BOUND = 1e-3
N_POSITIONS = 100
QWEN2 = Shape("qwen2", n_heads=4, n_kv_heads=2, head_dim=64, ffn_width=512)
GPT_OSS = Shape("gpt-oss", n_heads=4, n_kv_heads=2, head_dim=64, ffn_width=256, window=32)
CASES = [(QWEN2, kind) for kind in BLOCK_FORMATS if kind != "F32"]
CASES += [(GPT_OSS, kind) for kind in ("MXFP4", "F16", "BF16", "Q8_0", "Q4_K")]


@pytest.mark.parametrize(
    ("shape", "kind"), CASES, ids=lambda case: getattr(case, "architecture", case)
)
def test_logits_agree_on_the_dequantized_weights(shape: Shape, kind: str, tmp_path: Path) -> None:
    model, path = tiny_models.build(shape), tmp_path / "model.gguf"
    blocks = tiny_models.quantize(model, shape, kind)
    tiny_models.write(model, shape, path, kind, blocks)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, N_POSITIONS).tolist()
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    runtime = tiny_models.load(path)
    try:
        got = runtime.logits(ids, lambda: None)
    finally:
        runtime.close()
    assert len(blocks) >= 5
    assert np.abs(got - wanted).max() <= LOGIT_BOUND * np.ptp(wanted)
