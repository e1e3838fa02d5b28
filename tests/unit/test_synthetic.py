"""Generated models: small, quick, the same for the same seed, readable by the `gguf` package."""

import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from engine.backends import LoadOptions
from engine.config import ARCHITECTURES, ModelConfig
from engine.gguf import GGUFFile
from engine.gguf_writer import TensorSpec, write_gguf
from engine.loading import load_model
from engine.quants import BLOCK_FORMATS
from engine.sampler import SamplingParams
from engine.synthetic import (
    ALL_MXFP4,
    FLOAT,
    MODELS,
    PUBLISHED,
    TINY,
    _constants,
    _Weights,
    random_blocks,
    write_model,
)
from engine.tokenizer import Tokenizer

PUBLISHED_BYTES = {
    "qwen2.5-0.5b": 491_400_032, "phi-3-mini": 2_393_231_072, "gpt-oss-20b": 12_109_566_560,
    "qwen2.5-7b": 4_683_074_240,
}  # fmt: skip


def test_every_architecture_has_a_tiny_model() -> None:
    assert {shape.architecture for shape in TINY.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_small_quick_and_the_same_by_seed(name: str, tmp_path: Path) -> None:
    started_s = time.thread_time()
    size = write_model(tmp_path / "a", name, seed=3)
    assert time.thread_time() - started_s < 1  # of the processor, however busy that is
    assert size == (tmp_path / "a").stat().st_size < 3_000_000
    write_model(tmp_path / "b", name, seed=3)
    write_model(tmp_path / "c", name, seed=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    with GGUFFile.open(tmp_path / "a") as file:
        config, tokenizer = ModelConfig.from_file(file), Tokenizer.from_file(file)
        assert config.architecture == TINY[name].architecture
        assert config.vocab_size == tokenizer.vocab_size
        assert file.metadata["haikugate.generated"] is True
        assert tokenizer.eos_ids


@pytest.mark.parametrize("name", TINY)
def test_the_gguf_package_reads_the_same_numbers(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m", name)
    with GGUFFile.open(tmp_path / "m") as file:
        for theirs in gguf.GGUFReader(tmp_path / "m").tensors:
            ours = file.tensors[theirs.name].dequantize()
            numbers = gguf.dequantize(theirs.data, theirs.tensor_type).reshape(ours.shape)
            np.testing.assert_array_equal(ours, numbers)
            assert np.isfinite(ours).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_weigh_what_the_published_files_weigh(name: str) -> None:
    """Within 4 %: the published files hold longer token lists and choose some types by layer."""
    total = sum(spec.size_bytes for spec in _Weights(PUBLISHED[name], 0).tensors())
    assert total == pytest.approx(PUBLISHED_BYTES[name], rel=0.04)
    assert _constants(PUBLISHED[name], name, 0)["haikugate.generated"] is True


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_noise_has_the_wanted_deviation(name: str) -> None:
    raw = random_blocks(np.random.default_rng(0), name, 1024, 4096)
    numbers = BLOCK_FORMATS[name].dequantize(raw)
    assert 0.3 < numbers.std() * 32 < 3
    assert abs(numbers.mean()) < 0.2 * numbers.std()


@pytest.mark.parametrize("name", TINY)
def test_the_engine_runs_every_tiny_model(name: str, tmp_path: Path) -> None:
    """Also with fewer rows than a tile: the router of the mixture of experts has 4."""
    write_model(tmp_path / "m.gguf", name)
    model = load_model(tmp_path / "m.gguf", LoadOptions(n_threads=1))
    try:
        sequence = model.runtime.open_sequence()
        model.runtime.prefill(sequence, list(range(3, 80)), lambda: None)
        greedy = SamplingParams(seed=0, temperature=0.0)
        stream = model.runtime.tokens(sequence, greedy, lambda: None)
        assert all(0 <= next(stream).token_id < model.config.vocab_size for _ in range(8))
        assert np.isfinite(sequence.logits).all()
        assert np.ptp(sequence.logits) > 0.1
        sequence.close()
    finally:
        model.close()


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    short = TensorSpec("t", (4,), "F32", lambda: [b"1234"])
    with pytest.raises(ValueError, match="t: 16 bytes wanted, got 4"):
        write_gguf(tmp_path / "m", {}, [short])
    assert not list(tmp_path.iterdir())
    assert set(MODELS) == set(TINY | FLOAT | ALL_MXFP4 | PUBLISHED)
