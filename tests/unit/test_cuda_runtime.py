"""The CUDA runtime over a fake device: plans, shapes, memory and sequences, without a GPU."""

import mmap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.adapters import adapter_for
from engine.backends import LoadOptions, cuda, cuda_decode
from engine.backends.cuda_device import CudaDevice
from engine.backends.cuda_kv import CudaSequence, PagePool
from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_plan import AttentionStep, EmbedStep, GatedStep, LinearStep, plan
from engine.backends.cuda_prefill import Chunk
from engine.backends.cuda_weights import is_mapped_file
from engine.config import ModelConfig
from engine.errors import (
    DeviceError,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadError,
    OutOfMemory,
)
from engine.gguf import GGUFFile, Tensor
from engine.loading import LoadedModel, load_model
from engine.probe import ProbeOptions
from engine.probes import gpt_oss_parts
from engine.program import (
    Add,
    Attention,
    Builder,
    Embed,
    GatedActivation,
    KvShape,
    Linear,
    Program,
    RmsNorm,
    Rope,
)
from engine.quants import BLOCK_FORMATS
from engine.sampler import SamplingParams
from engine.synthetic import TINY, write_model, write_shape
from kernels.context import DeviceLimits, KernelContext
from kernels.errors import KernelLaunchError
from kernels.gemv import Gemv
from tests.unit import fake_cuda
from tests.unit.fake_cuda import LAUNCHES, FakeCupy

WIDTH, HIDDEN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 256, 512, 320, 4, 2, 64


def tiny_program() -> Program:
    b = Builder()
    frequencies = tuple(10000.0 ** -(i / 32) for i in range(32))
    x = b.emit(Embed(b.value(WIDTH), "embed"))
    h = b.emit(RmsNorm(b.value(WIDTH), x, "norm", 1e-5))
    q, k, v = (
        b.emit(Linear(b.value(n * HEAD_DIM), h, name))
        for n, name in ((HEADS, "q"), (KV_HEADS, "k"), (KV_HEADS, "v"))
    )
    for value, n in ((q, HEADS), (k, KV_HEADS)):
        b.emit(Rope(value, n, HEAD_DIM, "half", frequencies))
    heads = {"n_heads": HEADS, "n_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "scale": 0.125}
    a = b.emit(Attention(b.value(HEADS * HEAD_DIM), q, k, v, 0, **heads))  # type: ignore[arg-type]
    x = b.emit(Add(x, x, b.emit(Linear(b.value(WIDTH), a, "o"))))
    h = b.emit(RmsNorm(b.value(WIDTH), x, "norm", 1e-5))
    gate, up = (b.emit(Linear(b.value(HIDDEN), h, name)) for name in ("gate", "up"))
    m = b.emit(GatedActivation(b.value(HIDDEN), gate, up, "silu"))
    x = b.emit(Add(x, x, b.emit(Linear(b.value(WIDTH), m, "down"))))
    body = b.take()
    h = b.emit(RmsNorm(b.value(WIDTH), x, "norm", 1e-5))
    logits = b.emit(Linear(b.value(VOCAB), h, "embed"))
    return Program(body, b.take(), b.widths, x, logits, KvShape(1, KV_HEADS, HEAD_DIM))


def tensors(type_name: str) -> dict[str, Tensor]:
    shapes = {
        "embed": (VOCAB, WIDTH), "q": (HEADS * HEAD_DIM, WIDTH), "k": (KV_HEADS * HEAD_DIM, WIDTH),
        "v": (KV_HEADS * HEAD_DIM, WIDTH), "o": (WIDTH, WIDTH), "gate": (HIDDEN, WIDTH),
        "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN),
    }  # fmt: skip
    found = {}
    for name, (rows, k) in shapes.items():
        raw = np.ones((rows, BLOCK_FORMATS[type_name].row_bytes(k)), np.uint8)
        found[name] = Tensor(name, type_name, (rows, k), raw)
    found["norm"] = Tensor("norm", "F32", (WIDTH,), np.ones((1, 4 * WIDTH), np.uint8))
    return found


def fake_device() -> CudaDevice:
    limits = DeviceLimits("sm_90", 132, 232448)
    return CudaDevice(0, "fake", (9, 0), limits, 1 << 37, 13000, 13000)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setattr(cuda, "import_cupy", lambda: fake)
    monkeypatch.setattr(cuda, "open_device", lambda device: fake_device())
    monkeypatch.setattr("kernels.context.Module", fake_cuda.FakeModule)
    monkeypatch.setattr("kernels.context.cached_cubin", lambda unit, architecture: b"cubin")
    LAUNCHES.clear()
    return fake


def load(type_name: str = "Q4_K", **options: Any) -> cuda.CudaRuntime:
    metadata = {"general.architecture": "llama", "llama.context_length": 1000}
    file: Any = SimpleNamespace(metadata=metadata, tensors=tensors(type_name), path=Path("tiny"))
    wanted = LoadOptions(device="cuda:0", **options)
    return cuda.load(file, tiny_program(), wanted, lambda a, b: None)


def load_tiny(folder: Path, model: str) -> tuple[LoadedModel, cuda.CudaRuntime]:
    """A tiny model of the catalogue, written to the folder and loaded; its runtime beside it."""
    write_model(folder / "m.gguf", model, 0)
    loaded = load_model(folder / "m.gguf", LoadOptions(device="cuda:0"))
    assert isinstance(loaded.runtime, cuda.CudaRuntime)
    return loaded, loaded.runtime


def go_on() -> None:
    return


@pytest.mark.parametrize("type_name", list(BLOCK_FORMATS))
def test_every_weight_type_runs_from_load_to_close(cupy: FakeCupy, type_name: str) -> None:
    runtime = load(type_name)
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, list(range(130)), go_on)
    tokens = runtime.tokens(sequence, SamplingParams(seed=1, temperature=0.7), go_on)
    assert [next(tokens).token_id for _ in range(3)] == [0, 0, 0]
    assert sequence.n_tokens == 133  # a step ahead of the token read last
    tokens.close()
    sequence.close()
    assert runtime.memory().kv_bytes == 0
    runtime.close()
    assert cupy.cuda.runtime.held == {}


def test_a_layer_is_five_fused_steps() -> None:
    types = dict.fromkeys(tensors("Q4_K"), "Q4_K")
    steps = plan(tiny_program(), types.__getitem__).body
    kinds = [EmbedStep, LinearStep, AttentionStep, LinearStep, GatedStep, LinearStep]
    assert [type(step) for step in steps] == kinds
    assert len(steps[1].linears) == 3  # type: ignore[union-attr]
    assert steps[1].norm  # type: ignore[union-attr]
    assert steps[3].residual  # type: ignore[union-attr]


def test_reported_bytes_are_those_allocated(cupy: FakeCupy) -> None:
    runtime = load()
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, [1, 2, 3], go_on)
    assert runtime.memory().kv_bytes > 0
    assert runtime.memory().total_bytes == sum(cupy.cuda.runtime.held.values())


def full_device(status: int) -> Any:
    """A module that the driver refuses with this status."""

    def refused(cubin: bytes) -> None:
        raise KernelLaunchError(f"loading a compiled kernel: CUDA error {status}", status)

    return refused


def test_a_kernel_that_a_full_device_has_no_room_for_ends_one_request_only(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded, runtime = load_tiny(tmp_path, "tiny-gpt-oss")
    sequence, prompt = runtime.open_sequence(), list(range(200))
    sequence.grow(len(prompt))
    for status, kind in ((2, OutOfMemory), (700, DeviceError)):
        monkeypatch.setattr("kernels.context.Module", full_device(status))
        with pytest.raises(kind):
            runtime.prefill(sequence, prompt, go_on)
    monkeypatch.setattr("kernels.context.Module", fake_cuda.FakeModule)
    sequence.close()
    again = runtime.open_sequence()
    runtime.prefill(again, prompt, go_on)
    again.close()
    loaded.close()
    assert cupy.cuda.runtime.held == {}


def test_a_full_device_at_load_is_told_as_insufficient_memory(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.context.Module", full_device(2))
    with pytest.raises(InsufficientMemory, match="kernels"):
        load()
    assert cupy.cuda.runtime.held == {}


def test_a_budget_that_is_too_small_names_both_counts(cupy: FakeCupy) -> None:
    with pytest.raises(InsufficientMemory) as raised:
        load(memory_limit_mb=1)
    assert raised.value.required_bytes > raised.value.available_bytes
    assert cupy.cuda.runtime.held == {}


@pytest.mark.parametrize("model", sorted(TINY))
def test_one_step_of_each_way_takes_every_kernel(
    cupy: FakeCupy, tmp_path: Path, model: str
) -> None:
    loaded, runtime = load_tiny(tmp_path, model)
    forward = runtime._forward
    with forward.context.recording() as prepared:
        forward.queue_every_kernel()
    space = forward.workspace
    with forward.context.recording() as needed:
        for rows in (1, 63, space.chunk_tokens):
            chunk = Chunk(rows, space.ids.rows(0, rows), space.position, space.pages)
            for bound in forward.model.body:
                forward._executor.run(bound, chunk)
        forward._queue_short_prompt(1)
        forward._run_head(1)
    assert len(forward.model.distinct_body()) < len(forward.model.body)
    compiled = {one for kernel in prepared for one in (kernel, *kernel.others)}
    assert compiled == {one for kernel in needed for one in (kernel, *kernel.others)}
    assert set(needed) <= compiled
    loaded.close()


def test_an_exhausted_kv_budget_ends_one_request_only(cupy: FakeCupy) -> None:
    runtime = load()
    page_bytes = 32 << 10
    device = cupy.cuda.runtime
    device.total_bytes = sum(device.held.values()) + 3 * page_bytes  # another process took the rest
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, [1] * 190, go_on)
    tokens = runtime.tokens(sequence, SamplingParams(1, 0.0), go_on)
    for _ in range(3):  # tokens 190 and 191 are decoded, the one after needs a fourth page
        next(tokens)
    with pytest.raises(OutOfMemory) as raised:
        next(tokens)
    assert raised.value.required_bytes == page_bytes
    sequence.close()
    again = runtime.open_sequence()
    runtime.prefill(again, [1] * 60, go_on)
    again.close()
    assert runtime.memory().kv_bytes == 0


def test_the_kv_budget_is_kept(cupy: FakeCupy) -> None:
    pool = PagePool(DevicePool(cupy, running=True), 1 << 20, 3 << 20)
    pages = [pool.take() for _ in range(3)]
    with pytest.raises(OutOfMemory, match="KV cache budget"):
        pool.take()
    pool.give_back(pages[0])
    assert pool.take() == pages[0]


def test_a_managed_pointer_fails_residency(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.FAULT_VARIABLE, "managed-pointer")
    with pytest.raises(DeviceError, match="managed memory"):
        load().verify_residency()


def test_whole_pages_of_a_prompt_are_reused(cupy: FakeCupy) -> None:
    runtime = load()
    first = runtime.open_sequence(cache_prompt=True)
    runtime.prefill(first, list(range(200)), go_on)
    first.close()
    assert runtime.memory().kv_bytes > 0
    second = runtime.open_sequence(cache_prompt=True)
    runtime.prefill(second, [*range(130), 7, 7, 7], go_on)
    assert second.cached_tokens == 128
    without = runtime.open_sequence()
    assert without.reuse_prefix(tuple(range(200))) == 0


def test_a_prompt_past_the_context_is_refused(cupy: FakeCupy) -> None:
    runtime = load()
    with pytest.raises(InvalidRequest, match="1001 tokens exceed the context length 1000"):
        runtime.prefill(runtime.open_sequence(), [0] * 1001, go_on)
    with pytest.raises(InvalidRequest, match="token ids"):
        runtime.prefill(runtime.open_sequence(), [VOCAB], go_on)


def test_the_last_token_of_the_context_ends_the_stream(cupy: FakeCupy) -> None:
    runtime = load(context_length=70)
    sequence = runtime.open_sequence()
    runtime.prefill(sequence, [0] * 66, go_on)
    assert len(list(runtime.tokens(sequence, SamplingParams(1, 0.0), go_on))) == 5


def test_cancel_is_seen_between_layers(cupy: FakeCupy) -> None:
    runtime = load()

    def stop() -> None:
        raise InvalidRequest("stop", "stopped")

    sequence = runtime.open_sequence()
    with pytest.raises(InvalidRequest):
        runtime.prefill(sequence, [1, 2], stop)
    sequence.close()
    assert runtime.memory().kv_bytes == 0


def test_pages_are_shared_counted_and_freed(cupy: FakeCupy) -> None:
    memory = DevicePool(cupy, running=True)
    pool = PagePool(memory, 1 << 20)
    table = memory.array((64,), "u64", "workspace")
    sequence = CudaSequence(pool, table, False, [])
    sequence.grow(64 * 9 + 1)
    assert pool.pages_in_use == 10
    assert memory.used_bytes["kv"] == 16 << 20
    sequence.close()
    sequence.close()
    assert pool.pages_in_use == memory.used_bytes["kv"] == 0


def test_the_end_of_a_layer_brings_the_keys_of_the_next(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Gemv] = []
    real = cuda_decode.Gemv
    monkeypatch.setattr(cuda_decode, "Gemv", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    write_model(tmp_path / "m.gguf", "tiny-phi3", 0)
    loaded = load_model(tmp_path / "m.gguf", LoadOptions(device="cuda:0", context_length=100))
    loaded.close()
    ahead = [spec.ahead for spec in made if spec.ahead]
    layer_bytes = 2 * 4 * 64 * 64 * 2
    assert [keys.cache.layer_offset for keys in ahead] == [layer_bytes]
    assert ahead[0].shape.window == 63
    assert [s.epilogue for s in made].count("ADD") == 4


def test_loading_leaves_ordinary_memory_as_it_was(cupy: FakeCupy) -> None:
    found = tensors("Q8_0")
    file: Any = SimpleNamespace(
        metadata={"general.architecture": "llama", "llama.context_length": 100}, tensors=found
    )
    cuda.load(file, tiny_program(), LoadOptions(device="cuda:0"), lambda a, b: None)
    assert all((tensor.raw == 1).all() for tensor in found.values())


def test_only_a_mapped_file_may_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(8192))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(mapped, np.uint8).reshape(2, 4096)[1:]
    assert is_mapped_file(view)
    assert not is_mapped_file(np.zeros((2, 4096), np.uint8)[1:])


@pytest.mark.parametrize("model", ["tiny-gpt-oss-f32", "tiny-gpt-oss-mxfp4", "tiny-gpt-oss"])
def test_experts_run_by_kernels_of_their_kind(cupy: FakeCupy, tmp_path: Path, model: str) -> None:
    write_model(tmp_path / "m.gguf", model, 0)
    loaded = load_model(tmp_path / "m.gguf", LoadOptions(device="cuda:0"))
    sequence = loaded.runtime.open_sequence()
    loaded.runtime.prefill(sequence, [1, 2, 3], go_on)
    launched = {name.partition("_")[0] for name in LAUNCHES}
    assert ("experts" in launched) == model.endswith("f32")
    tokens = loaded.runtime.tokens(sequence, SamplingParams(seed=1), go_on)
    assert next(tokens).token_id == 0
    tokens.close()
    sequence.close()
    loaded.close()


def test_experts_half_packed_are_refused(cupy: FakeCupy, tmp_path: Path) -> None:
    shape = replace(TINY["tiny-gpt-oss"], types={"default": "MXFP4"})
    write_shape(tmp_path / "m.gguf", shape, "m", 0)
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        name = "blk.0.ffn_down_exps.weight"
        packed = file.tensors[name]
        values = packed.dequantize().reshape(packed.raw.shape[0], -1)
        floats = Tensor(name, "F32", packed.shape, values.view(np.uint8))
        file.tensors = {**file.tensors, name: floats}
        config = ModelConfig.from_file(file)
        program = adapter_for(config).program(config, file.tensors)
        with pytest.raises(ModelLoadError, match="all three quantized or none"):
            cuda.load(file, program, LoadOptions(device="cuda:0"), lambda a, b: None)


def test_parts_of_a_layer_run_although_no_linear_ends_them(cupy: FakeCupy) -> None:
    found = gpt_oss_parts.cases(ProbeOptions(device="cuda:0"))
    assert {case["part"] for case in found} == set(gpt_oss_parts.PARTS)


def test_a_kernel_that_does_not_wait_is_queued_after_the_one_before() -> None:
    context = KernelContext(DeviceLimits("sm_90", 132, 232448), dependent=True)
    with context.serialized():
        assert not context.dependent
    assert context.dependent


def test_allocations_are_described(cupy: FakeCupy) -> None:
    runtime = load()
    assert {one["purpose"] for one in runtime.allocations()} == {"weights", "workspace"}
    assert {one["kind"] for one in runtime.allocations()} == {"device"}
    runtime.close()


def test_memory_that_the_driver_refuses_is_not_available(cupy: FakeCupy) -> None:
    def refuse(size: int) -> int:
        raise fake_cuda.FakeRuntimeError("cudaErrorMemoryAllocation: out of memory", 2)

    pool = DevicePool(cupy, running=True)
    cupy.cuda.runtime.malloc = refuse  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory) as caught:
        pool.allocate(4096, "kv")
    assert "4096 bytes required, 3840 bytes available" in str(caught.value)
