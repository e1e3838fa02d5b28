"""Token after token: captured decode steps that end with the draw of the next token.

The next step is queued before this token is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.backends import Checkpoint
from engine.backends.cuda_buckets import BucketBuilder, KeptStep
from engine.backends.cuda_decode import DecodeGraphs
from engine.backends.cuda_kv import CudaSequence
from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_model import Bound, BoundModel
from engine.backends.cuda_prefill import Chunk
from engine.backends.cuda_splitting import BUCKETS, bucket_of
from engine.backends.cuda_workspace import Workspace
from engine.errors import OutOfMemory
from engine.sampler import SampledToken, SamplingParams, sample
from kernels.arrays import DeviceArray
from kernels.context import KernelContext
from kernels.sample import SampleSettings

_DEVICE_TO_HOST = 2
Launches = list[Callable[[], None]]


@dataclass
class Generation:
    """Samples and decodes with a bound model in a workspace, up to `context_length` tokens."""

    context: KernelContext
    memory: DevicePool
    stream: Any
    model: BoundModel
    workspace: Workspace
    context_length: int

    def __post_init__(self) -> None:
        cuda = self.memory.cupy.cuda
        self._pinned = np.frombuffer(cuda.alloc_pinned_memory(8), np.int32, 2)
        self._read = [cuda.Event(disable_timing=True) for _ in range(2)]
        self._sampler = self.workspace.sampler
        self._shared: dict[str, DeviceArray] = {}
        self._kept: dict[int, KeptStep] = {}
        self._head_launches = self._build(self.model.head, 0, {})
        self._graphs = DecodeGraphs(self.stream, self.context, self._step)

    def _build(self, steps: tuple[Bound, ...], bucket: int, kept: dict[int, KeptStep]) -> Launches:
        space = self.workspace
        one = Chunk(1, space.token, space.position, space.pages)
        builder = BucketBuilder(
            self.context, self.memory, space.row, one, BUCKETS[bucket], self._sampler.logits,
            self._sampler.best, self._shared, kept=kept,
        )  # fmt: skip
        return builder.build(steps)

    def _step(self, bucket: int) -> Launches:
        """The launches of one token's body, head and draw."""
        launches = self._build((*self.model.body, *self.model.head), bucket, self._kept)
        return [*launches, lambda: self._sampler.sample(self.context)]

    def queue_every_kernel(self) -> None:
        """Launch what is in no captured step once; for a context that records."""
        self._sampler.mark_seen(self.context, self.workspace.token)

    def capture(self) -> None:
        """Capture the steps of all buckets that the context reaches, their kernels compiled."""
        for bucket in range(bucket_of(self.context_length - 1) + 1):
            self._graphs.capture(bucket)
        self._kept.clear()

    def queue_head(self) -> None:
        """Queue the one-token head: the logits that the next token is drawn from."""
        for launch in self._head_launches:
            launch()

    def tokens(
        self, sequence: CudaSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]:
        """Sample, then decode, for as long as the caller asks and the context has room."""
        if sampling.logprobs is not None:
            yield from self._tokens_with_logprobs(sequence, sampling, checkpoint)
            return
        self._begin_sampling(sequence, sampling)
        self._sampler.sample(self.context)
        try:
            yield from self._overlapped(sequence, checkpoint)
        finally:
            self.stream.synchronize()

    def _begin_sampling(self, sequence: CudaSequence, sampling: SamplingParams) -> None:
        settings = SampleSettings(
            sampling.seed, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p,
            sampling.repetition_penalty,
        )  # fmt: skip
        self.stream.synchronize()
        self.memory.zero(self._sampler.seen)
        self.memory.write(
            self._sampler.parameters, np.frombuffer(settings.packed(), np.int32).copy()
        )
        state = np.array([0, sequence.n_tokens - 1, 0], np.int32)
        self.memory.write(self._sampler.state, state)
        if sampling.repetition_penalty != 1.0:
            self._mark_seen(sequence.token_ids)

    def _mark_seen(self, token_ids: list[int]) -> None:
        chunk_tokens = self.workspace.chunk_tokens
        for start in range(0, len(token_ids), chunk_tokens):
            part = np.array(token_ids[start : start + chunk_tokens], np.int32)
            ids = self.workspace.ids.rows(0, part.size)
            self.memory.write(ids, part)
            self._sampler.mark_seen(self.context, ids)
            self.stream.synchronize()

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
        self.memory.cupy.cuda.runtime.memcpyAsync(
            self._pinned.ctypes.data + 4 * turn, self.workspace.token.pointer, 4, _DEVICE_TO_HOST,
            self.stream.ptr,
        )  # fmt: skip
        self._read[turn].record(self.stream)

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
            self.stream.synchronize()
            logits = self.memory.read(self._sampler.logits)[0]
            token = sample(logits, sampling, index, sequence.token_ids)
            state = np.array([token.token_id, sequence.n_tokens, index], np.int32)
            sequence.token_ids.append(token.token_id)
            yield token
            if sequence.n_tokens >= self.context_length:
                return
            checkpoint()
            self.memory.write(self._sampler.state, state)
            self._queue_step(sequence)
            index += 1
