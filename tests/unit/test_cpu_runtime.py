"""The CPU runtime: the same bits however work is cut, budgets kept, work stopped when asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters import adapter_for
from engine.backends import LoadOptions, cpu
from engine.config import ModelConfig
from engine.errors import Cancelled, InsufficientMemory, InvalidRequest, OutOfMemory
from engine.gguf import GGUFFile
from engine.sampler import SamplingParams
from tests.default_model import DEFAULT_MODEL

MODEL = DEFAULT_MODEL
GOLDENS = Path(__file__).parents[2] / "suites/goldens/smollm2-135m-instruct.json"
LOGIT_BOUND = 1e-3
EXCUSED = 0.02


def load(**options: int) -> cpu.CpuRuntime:
    with GGUFFile.open(MODEL) as file:
        config = ModelConfig.from_file(file)
        program = adapter_for(config).program(config, file.tensors)
        return cpu.load(file, program, LoadOptions(**options), lambda _done, _total: None)


@pytest.fixture(scope="module")
def runtime() -> Iterator[cpu.CpuRuntime]:
    runtime = load(n_threads=2)
    yield runtime
    runtime.close()


def go_on() -> None:
    return


def token_ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 49_000, n).tolist()


def last_logits(runtime: cpu.CpuRuntime, ids: list[int], *, cache: bool = False) -> Any:
    sequence = runtime.open_sequence(cache_prompt=cache)
    try:
        runtime.prefill(sequence, ids, go_on)
        return sequence.logits, sequence.cached_tokens
    finally:
        sequence.close()


def test_decode_equals_prefill_bit_for_bit(runtime: cpu.CpuRuntime) -> None:
    ids = token_ids(70)
    rows = runtime.logits(ids, go_on)
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, ids[:60], go_on)
    for at in range(60, 70):
        runtime.prefill(sequence, ids[at : at + 1], go_on)
        assert np.array_equal(sequence.logits, rows[at])
    sequence.close()


def test_one_thread_equals_two_bit_for_bit(runtime: cpu.CpuRuntime) -> None:
    alone = load(n_threads=1)
    try:
        assert np.array_equal(
            alone.logits(token_ids(20), go_on), runtime.logits(token_ids(20), go_on)
        )
    finally:
        alone.close()


def test_a_reused_prefix_changes_no_bit(runtime: cpu.CpuRuntime) -> None:
    ids = token_ids(150, seed=4)
    plain, none_cached = last_logits(runtime, ids)
    last_logits(runtime, ids[:130], cache=True)
    reused, cached = last_logits(runtime, ids, cache=True)
    assert (none_cached, cached) == (0, 128)
    assert np.array_equal(plain, reused)


def test_cancelling_between_layers_leaves_the_runtime_as_new(runtime: cpu.CpuRuntime) -> None:
    wanted, _ = last_logits(runtime, token_ids(64, seed=5))
    before, calls = runtime.memory().kv_bytes, 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Cancelled("asked to stop")

    sequence = runtime.open_sequence()
    with pytest.raises(Cancelled):
        runtime.prefill(sequence, token_ids(64, seed=6), stop)
    sequence.close()
    assert runtime.memory().kv_bytes == before
    assert np.array_equal(last_logits(runtime, token_ids(64, seed=5))[0], wanted)


def test_an_exhausted_kv_budget_is_out_of_memory_and_the_next_request_is_served() -> None:
    runtime = load(n_threads=2, kv_cache_mb=6)
    try:
        wanted, _ = last_logits(runtime, token_ids(40))
        with pytest.raises(OutOfMemory):
            last_logits(runtime, token_ids(300))
        assert runtime.memory().kv_bytes == 0
        assert np.array_equal(last_logits(runtime, token_ids(40))[0], wanted)
    finally:
        runtime.close()


def test_a_limit_below_the_weights_is_refused_with_both_numbers() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        load(memory_limit_mb=64)
    assert caught.value.required_bytes > caught.value.available_bytes == 64 << 20


def test_token_ids_outside_the_vocabulary_are_refused(runtime: cpu.CpuRuntime) -> None:
    with pytest.raises(InvalidRequest):
        last_logits(runtime, [49_152])


def test_weights_keep_the_files_size(runtime: cpu.CpuRuntime) -> None:
    assert runtime.memory().weights_bytes < MODEL.stat().st_size


def test_sampling_depends_on_the_seed_alone(runtime: cpu.CpuRuntime) -> None:
    def draw() -> list[int]:
        sequence = runtime.open_sequence()
        runtime.prefill(sequence, token_ids(9), go_on)
        stream = runtime.tokens(sequence, SamplingParams(seed=7), go_on)
        drawn = [next(stream).token_id for _ in range(8)]
        sequence.close()
        return drawn

    first = draw()
    last_logits(runtime, token_ids(80, seed=9))
    assert draw() == first


def test_the_greedy_path_is_the_oracles_teacher_forced(runtime: cpu.CpuRuntime) -> None:
    positions = excused = 0
    for case in json.loads(GOLDENS.read_text())["cases"]:
        prompt_ids, wanted = case["prompt_ids"], case["completion_ids"]
        rows = runtime.logits([*prompt_ids, *wanted[:-1]], go_on)[len(prompt_ids) - 1 :]
        numbers = zip(rows, wanted, case["margins"], case["logit_range"], strict=True)
        for row, token_id, margin, span in numbers:
            ours = row[token_id] - np.delete(row, token_id).max()
            assert abs(ours - margin) <= 2 * LOGIT_BOUND * span
            positions += 1
            excused += bool(ours < 0)
    assert positions >= 20 * 64
    assert excused <= EXCUSED * positions
