"""The CUDA runtime: a program on one GPU, everything it holds in that GPU's memory.

Prefill runs chunks of tokens through tensor-core kernels (`cuda_forward.py`); decode replays a
captured graph that ends with the draw of the next token (`cuda_generation.py`).
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import Checkpoint, LoadOptions, MemoryReport, Progress
from engine.backends.cuda_bandwidth import read_gb_per_s
from engine.backends.cuda_device import import_cupy, open_device
from engine.backends.cuda_forward import ForwardPass
from engine.backends.cuda_generation import Generation
from engine.backends.cuda_kv import CudaSequence, PagePool, Prefix
from engine.backends.cuda_memory import GRANULE_BYTES, Allocation, DevicePool
from engine.backends.cuda_model import BoundModel, ModelBuilder
from engine.backends.cuda_plan import Plan, plan
from engine.backends.cuda_scoring import Scoring
from engine.backends.cuda_weights import WeightLoader
from engine.backends.cuda_workspace import Workspace
from engine.backends.prompt_bounds import check_token_ids
from engine.errors import DeviceError
from engine.gguf import GGUFFile
from engine.program import Program
from engine.sampler import SampledToken, SamplingParams, TokenScore
from kernels.context import KernelContext
from kernels.errors import OUT_OF_MEMORY, KernelError

MEBIBYTE = 1 << 20
FAULT_VARIABLE = "HAIKUGATE_FAULT"


def load(
    file: GGUFFile, program: Program, options: LoadOptions, progress: Progress
) -> "CudaRuntime":
    """Load a model onto a GPU; raises DeviceError, ModelLoadError or InsufficientMemory."""
    device = open_device(options.device)
    trained = int(file.metadata[f"{file.metadata['general.architecture']}.context_length"])
    context_length = min(options.context_length, trained) if options.context_length else trained
    runtime = CudaRuntime(device, program, options, context_length)
    try:
        runtime.load_weights(file, progress)
    except BaseException:
        runtime.close()
        raise
    return runtime


class CudaRuntime:
    """engine.backends.Runtime on one GPU."""

    kv_dtype = "f16"

    def __init__(
        self, device: Any, program: Program, options: LoadOptions, context_length: int
    ) -> None:
        self.program = program
        self.device = f"cuda:{device.index}"
        self.vocab_size = program.logits.width
        self.context_length = context_length
        self._facts = device.facts()
        self._cupy = import_cupy()
        self._options = options
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._context = KernelContext(device.limits, self._stream.ptr)
        self._memory = DevicePool(self._cupy, options.memory_limit_mb * MEBIBYTE)
        self._prefix: list[Prefix] = []
        self._closed = False

    # --- loading

    def load_weights(self, file: GGUFFile, progress: Progress) -> None:
        """Plan the program, upload what it needs, and capture decoding."""
        with self._device_errors("loading the model"):
            planned = plan(self.program, lambda name: file.tensors[name].type)
            self._require_memory(file)
            self._upload(file, planned, progress)
            self._memory.running = True
            if os.environ.get(FAULT_VARIABLE) == "managed-pointer":
                self._memory.adopt_managed_page()
            else:
                self._memory.verify()

    def _require_memory(self, file: GGUFFile) -> None:
        """Fail before the first copy where the weights alone cannot fit."""
        wanted = sum(tensor.size_bytes for tensor in file.tensors.values())
        if wanted > self._memory.available_bytes():
            raise self._memory.exhausted(wanted, "weights")

    def _upload(self, file: GGUFFile, planned: Plan, progress: Progress) -> None:
        """Copy the weights, and prepare for running meanwhile.

        Progress begins only then: with it begins the tokenizer, which keeps the GIL for long.
        """
        context, memory = self._context, self._memory
        total = sum(tensor.size_bytes for tensor in file.tensors.values())
        n_blocks, n_positions = context.limits.n_multiprocessors, self.context_length
        space = Workspace.allocate(planned, self.program.kv, memory, n_blocks, n_positions)
        loader = WeightLoader(memory, context.limits, space.staging)
        try:
            builder = ModelBuilder(file.tensors, loader, memory, context, n_positions)
            model = builder.build(planned)
            loader.start()
            self._prepare(model, space)
            progress(0, total)
            loader.finish(progress, total)
        finally:
            loader.close()
        progress(total, total)

    def _prepare(self, model: BoundModel, space: Workspace) -> None:
        """Compile every kernel, and capture decoding."""
        context, memory, n_positions = self._context, self._memory, self.context_length
        self._page_table = space.page_table
        self._pool = PagePool(memory, space.page_bytes, self._options.kv_cache_mb * MEBIBYTE)
        self._generation = Generation(context, memory, self._stream, model, space, n_positions)
        self._forward = ForwardPass(context, memory, self._stream, model, space, n_positions)
        self._scoring = Scoring(self._forward, self.open_sequence)
        with context.recording() as kernels:
            self._forward.queue_every_kernel()
            self._generation.queue_every_kernel()
        context.prepare(kernels)
        self._generation.capture()

    @contextmanager
    def _device_errors(self, what: str) -> Iterator[None]:
        """Turn the driver's and CuPy's errors into one-line ones of the engine."""
        try:
            yield
        except (KernelError, self._cupy.cuda.runtime.CUDARuntimeError) as error:
            if getattr(error, "status", 0) == OUT_OF_MEMORY:
                code = "the driver (kernels, graphs)"
                raise self._memory.exhausted(GRANULE_BYTES, code, refused=True) from error
            raise DeviceError(f"{what}: {error}") from error

    # --- facts

    def memory(self) -> MemoryReport:
        """Bytes held on the device by purpose."""
        return self._memory.report()

    def device_facts(self) -> dict[str, Any]:
        """The device, its architecture and CUDA's versions."""
        return dict(self._facts)

    def allocations(self) -> list[Allocation]:
        """Every allocation, with the kind of memory that the driver says it is."""
        return list(self._memory.described())

    def read_gb_per_s(self) -> float:
        """Measured read bandwidth of the device's memory."""
        with self._device_errors("reading memory"):
            return read_gb_per_s(self._context, self._memory, self._stream)

    def verify_residency(self) -> None:
        """Raise DeviceError unless all memory held is plain device memory of this device."""
        with self._device_errors("residency"):
            self._memory.verify()

    # --- running

    def open_sequence(self, *, cache_prompt: bool = False) -> CudaSequence:
        """A fresh sequence; the caller closes it."""
        return CudaSequence(self._pool, self._page_table, cache_prompt, self._prefix)

    def _check(self, n_stored: int, token_ids: Sequence[int]) -> None:
        check_token_ids(
            n_stored, token_ids, vocab_size=self.vocab_size, context_length=self.context_length
        )

    def prefill(
        self, sequence: CudaSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        """Add tokens to the sequence and leave the logits after the last one on the device."""
        self._check(sequence.n_tokens, token_ids)
        with self._device_errors("prefill"):
            reused = 0
            if sequence.n_tokens == 0:
                reused = sequence.reuse_prefix(tuple(token_ids))
                sequence.token_ids.extend(token_ids[:reused])
            chunks = self._forward.run(sequence, token_ids[reused:], checkpoint)
            _, size = deque(chunks, maxlen=1).pop()
            checkpoint()
            sequence.n_prompt = sequence.n_tokens
            self._forward.keep_row(size - 1)
            self._generation.queue_head()

    def tokens(
        self, sequence: CudaSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]:
        """Sample, then decode, for as long as the caller asks and the context has room."""
        with self._device_errors("decode"):
            yield from self._generation.tokens(sequence, sampling, checkpoint)

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], checkpoint: Checkpoint
    ) -> list[TokenScore]:
        """Each completion token's score given everything before it, in one pass."""
        if not completion_ids:
            return []
        self._check(0, [*prompt_ids, *completion_ids[:-1]])
        with self._device_errors("score"):
            return self._scoring.score(prompt_ids, completion_ids, checkpoint)

    def logits(self, token_ids: Sequence[int], checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Logits after every position, float32 [tokens, vocab]."""
        self._check(0, token_ids)
        with self._device_errors("logits"):
            return self._scoring.logits(token_ids, checkpoint)

    def close(self) -> None:
        """Free all device memory and kernels; idempotent."""
        if self._closed:
            return
        self._closed = True
        with self._device_errors("closing"):
            self._stream.synchronize()
            self._memory.close()
            self._context.close()
