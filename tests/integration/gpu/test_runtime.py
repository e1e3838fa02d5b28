"""The CUDA runtime on a device: against float64 logits, and bit for bit against itself."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.backends import LoadOptions, cuda
from engine.backends.cuda_memory import DevicePool
from engine.errors import DeviceError, OutOfMemory
from engine.gguf import Tensor
from engine.loading import load_model
from engine.quants import BLOCK_FORMATS
from engine.sampler import SamplingParams
from engine.synthetic import write_model
from kernels.compile import cached_cubin
from kernels.context import Kernel, KernelContext
from kernels.driver import Module
from kernels.errors import OUT_OF_MEMORY, KernelLaunchError
from tests.integration.gpu.arrays import random_blocks
from tests.unit.test_cuda_runtime import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    VOCAB,
    WIDTH,
    tensors,
    tiny_program,
)

LOGIT_BOUND = 5e-3


def go_on() -> None:
    return


def model_file(type_name: str) -> Any:
    rng = np.random.default_rng(1)
    found = {}
    for name, tensor in tensors(type_name).items():
        raw = random_blocks(rng, tensor.type, tensor.raw.shape[0], tensor.shape[-1])
        if name == "norm":
            raw = np.ones((1, WIDTH), np.float32).view(np.uint8)
        found[name] = Tensor(name, tensor.type, tensor.shape, raw)
    metadata = {"general.architecture": "llama", "llama.context_length": 9000}
    return SimpleNamespace(metadata=metadata, tensors=found, path=Path("tiny"))


@pytest.fixture
def runtime(context: KernelContext) -> Iterator[cuda.CudaRuntime]:
    options = LoadOptions(device="cuda:0")
    loaded = cuda.load(model_file("Q4_K"), tiny_program(), options, lambda a, b: None)
    yield loaded
    loaded.close()


def ids(n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(n).integers(0, VOCAB, n)]


def generated(runtime: cuda.CudaRuntime, prompt: list[int], n: int, **sampling: Any) -> list[int]:
    sequence = runtime.open_sequence(cache_prompt=sampling.pop("cache_prompt", False))
    runtime.prefill(sequence, prompt, go_on)
    wanted = SamplingParams(**{"seed": 3, "temperature": 0.0, **sampling})
    tokens = runtime.tokens(sequence, wanted, go_on)
    found = [next(tokens).token_id for _ in range(n)]
    tokens.close()
    sequence.close()
    return found


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def rotated(x: np.ndarray) -> np.ndarray:
    angle = np.arange(len(x))[:, None, None] * 10000.0 ** -(np.arange(32) / 32)
    a, b, c, s = x[..., :32], x[..., 32:], np.cos(angle), np.sin(angle)
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def reference_logits(file: Any, token_ids: list[int]) -> np.ndarray:
    """The tiny program of the unit tests in float64."""
    w = {
        name: np.asarray(BLOCK_FORMATS[t.type].dequantize(t.raw), np.float64)
        for name, t in file.tensors.items()
    }
    x = w["embed"][token_ids]
    q, k, v = ((rms(x) @ w[n].T).reshape(len(x), -1, HEAD_DIM) for n in "qkv")
    q, k = rotated(q), rotated(k)
    k, v = (np.repeat(a, HEADS // KV_HEADS, axis=1) for a in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) * 0.125
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    x = x + np.einsum("hts,shd->thd", share, v).reshape(len(x), -1) @ w["o"].T
    gate, up = (rms(x) @ w[n].T for n in ("gate", "up"))
    x = x + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T
    return np.asarray(rms(x) @ w["embed"].T)


@pytest.mark.parametrize("type_name", list(BLOCK_FORMATS))
def test_logits_equal_float64(context: KernelContext, type_name: str) -> None:
    file = model_file(type_name)
    options = LoadOptions(device="cuda:0", context_length=512)
    gpu = cuda.load(file, tiny_program(), options, lambda a, b: None)
    got, want = gpu.logits(ids(200), go_on), reference_logits(file, ids(200))
    assert np.abs(got - want).max() < LOGIT_BOUND * (want.max() - want.min())
    gpu.close()


def test_logits_repeat_bit_for_bit_a_hundred_times(runtime: cuda.CudaRuntime) -> None:
    prompt = ids(100)
    first = runtime.logits(prompt, go_on)
    for i in range(100):
        if i % 10 == 0:
            generated(runtime, ids(30 + i), 3, temperature=1.0, seed=i)
        assert (runtime.logits(prompt, go_on) == first).all()


def test_a_prompt_in_pieces_or_from_the_cache_gives_the_same_tokens(
    runtime: cuda.CudaRuntime,
) -> None:
    prompt = ids(4300)
    whole = generated(runtime, prompt, 20, temperature=1.0)
    assert generated(runtime, prompt, 20, temperature=1.0, cache_prompt=True) == whole
    sequence = runtime.open_sequence(cache_prompt=True)
    runtime.prefill(sequence, prompt, go_on)
    assert sequence.cached_tokens == 4288
    tokens = runtime.tokens(sequence, SamplingParams(seed=3), go_on)
    assert [next(tokens).token_id for _ in range(20)] == whole
    tokens.close()
    sequence.close()


def test_device_and_host_draw_the_same_tokens(runtime: cuda.CudaRuntime) -> None:
    for sampling in (
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7, "min_p": 0.01},
        {"temperature": 0.9, "repetition_penalty": 1.4},
        {"temperature": 0.0, "repetition_penalty": 1.8},
    ):
        here = generated(runtime, ids(40), 24, **sampling)
        assert generated(runtime, ids(40), 24, logprobs=0, **sampling) == here, sampling


def test_decoding_across_buckets_agrees_with_prefill(runtime: cuda.CudaRuntime) -> None:
    prompt = ids(505)
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, prompt, go_on)
    wanted = SamplingParams(seed=3, temperature=0.0, logprobs=0)
    tokens = runtime.tokens(sequence, wanted, go_on)
    chosen = [next(tokens) for _ in range(20)]
    tokens.close()
    sequence.close()
    scores = runtime.score(prompt, [t.token_id for t in chosen], go_on)
    for token, score in zip(chosen, scores, strict=True):
        assert token.logprob == pytest.approx(score.logprob, abs=0.02)


def test_all_memory_is_plain_device_memory(runtime: cuda.CudaRuntime) -> None:
    runtime.verify_residency()
    import cupy

    pool = DevicePool(cupy)
    pool.array((100,), "f32", "workspace")
    assert pool.verify() == 1
    pool.adopt_managed_page()
    with pytest.raises(DeviceError, match="managed memory"):
        pool.verify()
    pool.close()


def all_that_is_left() -> list[int]:
    """Take the device's free memory, down to the last page of the driver."""
    import cupy

    runtime, taken, size = cupy.cuda.runtime, list[int](), 1 << 36
    while size >= 1 << 12:
        try:
            taken.append(runtime.malloc(size))
        except runtime.CUDARuntimeError:
            size >>= 1
    return taken


def loaded_until_refused(architecture: str) -> tuple[list[Module], int]:
    """Copies of a kernel on the device, and the status that refuses one more."""
    kernel = Kernel("read.cu", "read_words")
    cubin, loaded = cached_cubin(kernel.unit, architecture), list[Module]()
    for _ in range(100_000):
        try:
            loaded.append(Module(cubin))
            loaded[-1].function(kernel.entry)
        except KernelLaunchError as error:
            return loaded, error.status
    return loaded, 0


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="takes all memory: run without -n")
def test_a_full_device_refuses_a_kernel_as_it_refuses_memory(
    context: KernelContext, tmp_path: Path
) -> None:
    """A prompt whose pages are there wants a kernel that is loaded when it is launched first."""
    import cupy

    write_model(tmp_path / "m.gguf", "tiny-gpt-oss", 0)
    loaded = load_model(tmp_path / "m.gguf", LoadOptions(device="cuda:0"))
    runtime = loaded.runtime
    assert isinstance(runtime, cuda.CudaRuntime)
    sequence = runtime.open_sequence()
    sequence.grow(200)
    taken = all_that_is_left()
    kernels, status = loaded_until_refused(context.limits.architecture)
    try:
        assert status == OUT_OF_MEMORY
        for _ in range(2):
            with pytest.raises(OutOfMemory, match="kernels"):
                runtime.prefill(sequence, ids(200), go_on)
    finally:
        for kernel in kernels:
            kernel.unload()
        for pointer in taken:
            cupy.cuda.runtime.free(pointer)
        sequence.close()
    assert len(generated(runtime, ids(200), 4)) == 4
    loaded.close()


def test_closing_gives_the_memory_back(context: KernelContext) -> None:
    import cupy

    before = cupy.cuda.runtime.memGetInfo()[0]
    for _ in range(3):
        options = LoadOptions(device="cuda:0")
        loaded = cuda.load(model_file("Q8_0"), tiny_program(), options, lambda a, b: None)
        generated(loaded, ids(70), 4)
        loaded.close()
    assert before - cupy.cuda.runtime.memGetInfo()[0] < 64 << 20
