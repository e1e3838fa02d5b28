"""The CUDA runtime: a program on one GPU, everything it holds in that GPU's memory.

Prefill runs chunks of tokens through tensor-core kernels; decode replays a captured graph that ends
with the draw of the next token, and the next step is queued before this token is read. Prefill
computes each row alone, so chunk edges and reused prefixes do not change a bit of the result.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import Checkpoint, LoadOptions, MemoryReport, Progress
from engine.backends.cuda_bandwidth import read_gb_per_s
from engine.backends.cuda_buffers import Buffers
from engine.backends.cuda_decode import BUCKETS, DecodeBuilder, DecodeGraphs, bucket_of
from engine.backends.cuda_device import import_cupy, open_device
from engine.backends.cuda_kv import CudaSequence, PagePool, Prefix
from engine.backends.cuda_memory import Allocation, DevicePool
from engine.backends.cuda_model import Bound, BoundAttention, BoundLinear, ModelBuilder
from engine.backends.cuda_plan import plan
from engine.backends.cuda_prefill import Chunk, ChunkExecutor
from engine.backends.cuda_short_prompt import ShortPromptGraphs
from engine.backends.cuda_weights import WeightLoader
from engine.backends.prompt_bounds import check_token_ids
from engine.errors import DeviceError, OutOfMemory
from engine.gguf import GGUFFile
from engine.program import Program
from engine.sampler import SampledToken, SamplingParams, TokenScore, sample, score_token
from kernels.arrays import DeviceArray
from kernels.attention import PAGE_TOKENS, KvPages
from kernels.context import KernelContext
from kernels.errors import KernelError
from kernels.sample import PARAMETER_WORDS, STATE_WORDS, Sampler, SampleSettings

CHUNK_TOKENS = 4096
HEAD_ROWS = 32
MEBIBYTE = 1 << 20
FAULT_VARIABLE = "HAIKUGATE_FAULT"
_LAYERS_AHEAD = 4
_DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 2, 3


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


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """Turn the driver's and CuPy's errors into one-line DeviceErrors."""
    cupy = import_cupy()
    try:
        yield
    except (KernelError, cupy.cuda.runtime.CUDARuntimeError) as error:
        raise DeviceError(f"{what}: {error}") from error


def _go_on() -> None:
    """A checkpoint that never stops."""


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
        with device_errors("loading the model"):
            self._plan = plan(self.program, lambda name: file.tensors[name].type)
            self._require_memory(file)
            self._upload(file, progress)
            self._allocate()
            self._prepare()
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

    def _upload(self, file: GGUFFile, progress: Progress) -> None:
        total = sum(tensor.size_bytes for tensor in file.tensors.values())
        loader = WeightLoader(self._memory, self._context, self._stream, progress, total)
        loader.open()
        try:
            builder = ModelBuilder(
                file.tensors, loader, self._memory, self._context, self.context_length
            )
            self._body, self._head = builder.build(self._plan)
        finally:
            loader.close()
        progress(total, total)

    def _allocate(self) -> None:
        memory, vocab = self._memory, self.vocab_size
        self._chunk_tokens = min(CHUNK_TOKENS, -(-self.context_length // PAGE_TOKENS) * PAGE_TOKENS)
        self._rows = Buffers(self._plan, memory, self._chunk_tokens)
        self._rows.reserve_for_chunks()
        self._row = Buffers(self._plan, memory, 1, only_floats=True)
        self._row.reserve_for_chunks()
        n_blocks = self._context.limits.n_multiprocessors
        state = memory.array((STATE_WORDS,), "i32", "workspace")
        self._sampler = Sampler(
            memory.array((1, vocab), "f32", "workspace"),
            (
                memory.array((n_blocks,), "f32", "workspace"),
                memory.array((n_blocks,), "i32", "workspace"),
            ),
            memory.array((-(-vocab // 32),), "i32", "workspace"),
            memory.array((PARAMETER_WORDS,), "i32", "workspace"),
            state,
            memory.array((n_blocks,), "u64", "workspace"),
        )
        memory.zero(self._sampler.seen)
        self._token = DeviceArray(state.pointer, "i32", (1,))
        self._position = DeviceArray(state.pointer + 4, "i32", (1,))
        self._first = memory.array((1,), "i32", "workspace")
        self._ids = memory.array((self._chunk_tokens,), "i32", "workspace")
        memory.zero(self._ids)
        n_pages = -(-self.context_length // PAGE_TOKENS)
        self._page_table = memory.array((n_pages,), "u64", "workspace")
        self._logit_rows = memory.array((HEAD_ROWS, vocab), "f32", "workspace")
        self._rows.logits, self._row.logits = self._logit_rows, self._sampler.logits
        self._pool = PagePool(memory, self._page_bytes, self._options.kv_cache_mb * MEBIBYTE)
        self._pinned = np.frombuffer(self._cupy.cuda.alloc_pinned_memory(8), np.int32, 2)
        self._read = [self._cupy.cuda.Event(disable_timing=True) for _ in range(2)]

    @property
    def _page_bytes(self) -> int:
        kv = self.program.kv
        return kv.n_layers * self._layer_bytes

    @property
    def _layer_bytes(self) -> int:
        kv = self.program.kv
        return 2 * kv.n_kv_heads * PAGE_TOKENS * kv.head_dim * 2

    def _pages(self, layer: int) -> KvPages:
        return KvPages(self._page_table, self._page_bytes, layer * self._layer_bytes)

    def _prepare(self) -> None:
        """Compile every kernel that prefill and decode need, and capture decoding."""
        shared: dict[str, DeviceArray] = {}
        one = Chunk(1, self._token, self._position, self._pages)

        def build(steps: tuple[Bound, ...], bucket: int) -> list[Callable[[], None]]:
            builder = DecodeBuilder(
                self._context, self._memory, self._row, one, BUCKETS[bucket],
                self._sampler.logits, self._sampler.best, shared,
            )  # fmt: skip
            return builder.build(steps)

        def step(bucket: int) -> list[Callable[[], None]]:
            draw = lambda: self._sampler.sample(self._context)  # noqa: E731
            return [*build((*self._body, *self._head), bucket), draw]

        self._head_launches = build(self._head, 0)
        self._graphs = DecodeGraphs(self._stream, self._context, step)
        self._executor = ChunkExecutor(self._context, self._rows, few=False)
        self._few_executor = ChunkExecutor(self._context, self._rows)
        self._short_prompts = ShortPromptGraphs(
            self._stream, self._context, self._queue_short_prompt, self.context_length
        )
        with self._context.recording() as kernels:
            self._queue_short_prompt(1)
            for rows in (1, self._chunk_tokens):
                self._run_steps(
                    Chunk(rows, self._ids.rows(0, rows), self._position, self._pages), _go_on
                )
            self._run_head_rows(1)
            self._sampler.mark_seen(self._context, self._token)
        self._context.prepare(kernels)
        for bucket in range(bucket_of(self.context_length - 1) + 1):
            self._graphs.capture(bucket)

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
        with device_errors("reading memory"):
            return read_gb_per_s(self._context, self._memory, self._stream)

    def verify_residency(self) -> None:
        """Raise DeviceError unless all memory held is plain device memory of this device."""
        with device_errors("residency"):
            self._memory.verify()

    # --- running

    def open_sequence(self, *, cache_prompt: bool = False) -> CudaSequence:
        """A fresh sequence; the caller closes it."""
        return CudaSequence(self._pool, self._page_table, cache_prompt, self._prefix)

    def _chunks(
        self, sequence: CudaSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> Iterator[tuple[int, int]]:
        """Run the body chunk by chunk; yields (place in token_ids, tokens) of each."""
        at = 0
        while at < len(token_ids):
            edge = self._chunk_tokens - sequence.n_tokens % self._chunk_tokens
            size = min(edge, len(token_ids) - at)
            checkpoint()
            self._run_chunk(sequence, token_ids[at : at + size], checkpoint)
            yield at, size
            at += size

    def _run_chunk(
        self, sequence: CudaSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        n = len(token_ids)
        sequence.grow(sequence.n_tokens + n)
        ids = DeviceArray(self._ids.pointer, "i32", (n,))
        self._memory.write(ids, np.array(token_ids, np.int32))
        self._memory.write(self._first, np.array([sequence.n_tokens], np.int32))
        try:
            if sequence.n_tokens == 0 and n < PAGE_TOKENS:
                self._run_short_prompt(n)
            else:
                self._run_steps(Chunk(n, ids, self._first, self._pages), checkpoint)
        finally:
            self._stream.synchronize()
        sequence.n_tokens += n
        sequence.token_ids.extend(token_ids)

    def _run_short_prompt(self, n_tokens: int) -> None:
        """A prompt without a whole page, which nothing can reuse, has kernels of its own."""
        if not self._short_prompts.launch(n_tokens):
            self._queue_short_prompt(n_tokens)

    def _queue_short_prompt(self, rows: int) -> None:
        """Queue the body over the first rows of the ids."""
        chunk = Chunk(rows, self._ids.rows(0, rows), self._first, self._pages)
        for bound in self._body:
            self._few_executor.run(bound, chunk)

    def _run_steps(self, chunk: Chunk, checkpoint: Checkpoint) -> None:
        """Queue the body, never more than a few layers ahead of the device."""
        queued: deque[Any] = deque()
        for bound in self._body:
            self._executor.run(bound, chunk)
            if isinstance(bound, BoundAttention) and not self._context.is_recording:
                queued.append(self._stream.record())
                if len(queued) > _LAYERS_AHEAD:
                    queued.popleft().synchronize()
                checkpoint()

    def _run_head_rows(self, rows: int) -> DeviceArray:
        """Logits f32[rows, vocab] of the first rows of the chunk."""
        chunk = Chunk(rows, self._ids, self._first, self._pages)
        out = self._logit_rows.rows(0, rows)
        for bound in self._head:
            if isinstance(bound, BoundLinear) and bound.step.linears[0].out == self._plan.logits:
                self._few_executor.linear_into(bound, rows, [out])
            else:
                self._few_executor.run(bound, chunk)
        return out

    def prefill(
        self, sequence: CudaSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        """Add tokens to the sequence and leave the logits after the last one on the device."""
        check_token_ids(
            sequence.n_tokens,
            token_ids,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        with device_errors("prefill"):
            reused = 0
            if sequence.n_tokens == 0:
                reused = sequence.reuse_prefix(tuple(token_ids))
                sequence.token_ids.extend(token_ids[:reused])
            chunks = self._chunks(sequence, token_ids[reused:], checkpoint)
            _, size = deque(chunks, maxlen=1).pop()
            checkpoint()
            sequence.n_prompt = sequence.n_tokens
            self._last_row(size - 1)
            for launch in self._head_launches:
                launch()

    def _last_row(self, row: int) -> None:
        """Copy a row of the chunk to where the one-token head reads."""
        value = self._plan.head_input
        source = self._rows.floats(value, row + 1).rows(row, row + 1)
        self._cupy.cuda.runtime.memcpyAsync(
            self._row.floats(value, 1).pointer, source.pointer, 4 * value.width,
            _DEVICE_TO_DEVICE, self._stream.ptr,
        )  # fmt: skip

    def _begin_sampling(self, sequence: CudaSequence, sampling: SamplingParams) -> None:
        settings = SampleSettings(
            sampling.seed, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p,
            sampling.repetition_penalty,
        )  # fmt: skip
        self._stream.synchronize()
        self._memory.zero(self._sampler.seen)
        self._memory.write(
            self._sampler.parameters, np.frombuffer(settings.packed(), np.int32).copy()
        )
        state = np.array([0, sequence.n_tokens - 1, 0], np.int32)
        self._memory.write(self._sampler.state, state)
        if sampling.repetition_penalty != 1.0:
            self._mark_seen(sequence.token_ids)

    def _mark_seen(self, token_ids: list[int]) -> None:
        for start in range(0, len(token_ids), self._chunk_tokens):
            part = np.array(token_ids[start : start + self._chunk_tokens], np.int32)
            ids = DeviceArray(self._ids.pointer, "i32", (part.size,))
            self._memory.write(ids, part)
            self._sampler.mark_seen(self._context, ids)
            self._stream.synchronize()

    def tokens(
        self, sequence: CudaSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]:
        """Sample, then decode, for as long as the caller asks and the context has room."""
        with device_errors("decode"):
            if sampling.logprobs is not None:
                yield from self._tokens_with_logprobs(sequence, sampling, checkpoint)
                return
            self._begin_sampling(sequence, sampling)
            self._sampler.sample(self._context)
            try:
                yield from self._overlapped(sequence, checkpoint)
            finally:
                self._stream.synchronize()

    def _overlapped(self, sequence: CudaSequence, checkpoint: Checkpoint) -> Iterator[SampledToken]:
        """The step after the next token is queued before that token is read."""
        self._fetch_token(0)
        turn = 0
        while True:
            failure: OutOfMemory | None = None
            is_full = sequence.n_tokens >= self.context_length
            if not is_full:
                try:
                    self._queue_step(sequence)
                    self._fetch_token(1 - turn)
                except OutOfMemory as error:
                    failure = error
            token_id = self._take_token(turn)
            sequence.token_ids.append(token_id)
            yield SampledToken(token_id)
            if failure:
                raise failure
            if is_full:
                return
            checkpoint()
            turn = 1 - turn

    def _queue_step(self, sequence: CudaSequence) -> None:
        sequence.grow(sequence.n_tokens + 1)
        self._graphs.launch(sequence.n_tokens)
        sequence.n_tokens += 1

    def _fetch_token(self, turn: int) -> None:
        """Queue the copy of the sampled token to the host."""
        self._cupy.cuda.runtime.memcpyAsync(
            self._pinned.ctypes.data + 4 * turn, self._token.pointer, 4, _DEVICE_TO_HOST,
            self._stream.ptr,
        )  # fmt: skip
        self._read[turn].record(self._stream)

    def _take_token(self, turn: int) -> int:
        self._read[turn].synchronize()
        return int(self._pinned[turn])

    def _tokens_with_logprobs(
        self, sequence: CudaSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]:
        """One step at a time: the logits come to the host, where tokens are chosen and judged."""
        self._begin_sampling(sequence, sampling)
        index = 0
        while True:
            logits = self._to_host(self._sampler.logits)[0]
            token = sample(logits, sampling, index, sequence.token_ids)
            state = np.array([token.token_id, sequence.n_tokens, index], np.int32)
            sequence.token_ids.append(token.token_id)
            yield token
            if sequence.n_tokens >= self.context_length:
                return
            checkpoint()
            self._memory.write(self._sampler.state, state)
            self._queue_step(sequence)
            index += 1

    def _to_host(self, array: DeviceArray) -> NDArray[np.float32]:
        values = np.empty(array.shape, np.float32)
        self._stream.synchronize()
        self._cupy.cuda.runtime.memcpy(
            values.ctypes.data, array.pointer, values.nbytes, _DEVICE_TO_HOST
        )
        return values

    # --- scoring

    def _logit_chunks(
        self, token_ids: Sequence[int], first: int, checkpoint: Checkpoint
    ) -> Iterator[NDArray[np.float32]]:
        """Logits after each position from `first` on, in blocks of at most HEAD_ROWS rows."""
        sequence = self.open_sequence()
        check_token_ids(
            sequence.n_tokens,
            token_ids,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        try:
            for at, size in self._chunks(sequence, token_ids, checkpoint):
                for row in range(max(0, first - at), size, HEAD_ROWS):
                    rows = min(HEAD_ROWS, size - row)
                    self._move_rows(row, rows)
                    yield self._to_host(self._run_head_rows(rows))
                    checkpoint()
        finally:
            self._stream.synchronize()
            sequence.close()

    def _move_rows(self, row: int, rows: int) -> None:
        """Bring rows of the chunk to its start, where the head reads."""
        if row == 0:
            return
        value = self._plan.head_input
        source = self._rows.floats(value, row + rows).rows(row, row + rows)
        for i in range(rows):
            self._cupy.cuda.runtime.memcpyAsync(
                self._rows.floats(value, rows).pointer + 4 * i * source.stride,
                source.pointer + 4 * i * source.stride, 4 * value.width,
                _DEVICE_TO_DEVICE, self._stream.ptr,
            )  # fmt: skip

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], checkpoint: Checkpoint
    ) -> list[TokenScore]:
        """Each completion token's score given everything before it, in one pass."""
        if not completion_ids:
            return []
        token_ids = [*prompt_ids, *completion_ids[:-1]]
        with device_errors("score"):
            rows = [
                row
                for block in self._logit_chunks(token_ids, len(prompt_ids) - 1, checkpoint)
                for row in block
            ]
        return [score_token(row, one) for row, one in zip(rows, completion_ids, strict=True)]

    def logits(self, token_ids: Sequence[int], checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Logits after every position, float32 [tokens, vocab]."""
        with device_errors("logits"):
            return np.concatenate(list(self._logit_chunks(token_ids, 0, checkpoint)))

    def close(self) -> None:
        """Free all device memory and kernels; idempotent."""
        if self._closed:
            return
        self._closed = True
        with device_errors("closing"):
            self._stream.synchronize()
            self._memory.close()
            self._context.close()
