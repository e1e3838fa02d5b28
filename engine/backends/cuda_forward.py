"""The forward pass over many tokens: the body chunk by chunk, the head over rows of a chunk.

Each row is computed alone, so chunk edges and reused prefixes do not change a bit of the result.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.backends import Checkpoint
from engine.backends.cuda_kv import CudaSequence
from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_model import BoundAttention, BoundLinear, BoundModel
from engine.backends.cuda_prefill import Chunk, ChunkExecutor
from engine.backends.cuda_short_prompt import ShortPromptGraphs
from engine.backends.cuda_workspace import Workspace
from kernels.arrays import DeviceArray
from kernels.attention import PAGE_TOKENS
from kernels.context import KernelContext

_LAYERS_AHEAD = 4
_DEVICE_TO_DEVICE = 3


@dataclass
class ForwardPass:
    """Runs a bound model in a workspace, for sequences of up to `context_length` tokens."""

    context: KernelContext
    memory: DevicePool
    stream: Any
    model: BoundModel
    workspace: Workspace
    context_length: int

    def __post_init__(self) -> None:
        self._executor = ChunkExecutor(self.context, self.workspace.rows, few=False)
        self._few_executor = ChunkExecutor(self.context, self.workspace.rows)
        self._short_prompts = ShortPromptGraphs(
            self.stream, self.context, self._queue_short_prompt, self.context_length
        )

    def queue_every_kernel(self) -> None:
        """Launch each kernel that any chunk needs once; for a context that records."""
        space, steps = self.workspace, self.model.distinct_body()
        chunk = Chunk(1, space.ids.rows(0, 1), space.position, space.pages)
        for executor in (self._few_executor, self._executor):
            for bound in steps:
                executor.run(bound, chunk)
        self._run_head(1)

    def run(
        self, sequence: CudaSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> Iterator[tuple[int, int]]:
        """Add tokens to the sequence by chunks; yields (place in token_ids, tokens) of each."""
        at, chunk_tokens = 0, self.workspace.chunk_tokens
        while at < len(token_ids):
            edge = chunk_tokens - sequence.n_tokens % chunk_tokens
            size = min(edge, len(token_ids) - at)
            checkpoint()
            self._run_chunk(sequence, token_ids[at : at + size], checkpoint)
            yield at, size
            at += size

    def _run_chunk(
        self, sequence: CudaSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        n, space = len(token_ids), self.workspace
        sequence.grow(sequence.n_tokens + n)
        ids = space.ids.rows(0, n)
        self.memory.write(ids, np.array(token_ids, np.int32))
        self.memory.write(space.first, np.array([sequence.n_tokens], np.int32))
        try:
            if sequence.n_tokens == 0 and n < PAGE_TOKENS:
                self._run_short_prompt(n)
            else:
                self._run_steps(Chunk(n, ids, space.first, space.pages), checkpoint)
        finally:
            self.stream.synchronize()
        sequence.n_tokens += n
        sequence.token_ids.extend(token_ids)

    def _run_short_prompt(self, n_tokens: int) -> None:
        """A prompt without a whole page, which nothing can reuse, has kernels of its own."""
        if not self._short_prompts.launch(n_tokens):
            self._queue_short_prompt(n_tokens)

    def _queue_short_prompt(self, rows: int) -> None:
        """Queue the body over the first rows of the ids."""
        space = self.workspace
        chunk = Chunk(rows, space.ids.rows(0, rows), space.first, space.pages)
        for bound in self.model.body:
            self._few_executor.run(bound, chunk)

    def _run_steps(self, chunk: Chunk, checkpoint: Checkpoint) -> None:
        """Queue the body, never more than a few layers ahead of the device."""
        queued: deque[Any] = deque()
        for bound in self.model.body:
            self._executor.run(bound, chunk)
            if isinstance(bound, BoundAttention):
                queued.append(self.stream.record())
                if len(queued) > _LAYERS_AHEAD:
                    queued.popleft().synchronize()
                checkpoint()

    def logits(self, row: int, rows: int) -> DeviceArray:
        """Queue the head for at most HEAD_ROWS rows of the last chunk: logits f32[rows, vocab].

        What the first `rows` rows held is lost; the stream is not waited for.
        """
        self._move_rows(row, rows)
        return self._run_head(rows)

    def _run_head(self, rows: int) -> DeviceArray:
        """Logits f32[rows, vocab] of the first rows of the chunk."""
        space, plan = self.workspace, self.model.plan
        chunk = Chunk(rows, space.ids, space.first, space.pages)
        out = space.logit_rows.rows(0, rows)
        for bound in self.model.head:
            if isinstance(bound, BoundLinear) and bound.step.linears[0].out == plan.logits:
                self._few_executor.linear_into(bound, rows, [out])
            else:
                self._few_executor.run(bound, chunk)
        return out

    def _move_rows(self, row: int, rows: int) -> None:
        """Bring rows of the chunk to its start, where the head reads."""
        if row == 0:
            return
        value = self.model.plan.head_input
        source = self.workspace.rows.floats(value, row + rows).rows(row, row + rows)
        target = self.workspace.rows.floats(value, rows).pointer
        for offset in range(0, 4 * rows * source.stride, 4 * source.stride):
            self._copy(target + offset, source.pointer + offset, 4 * value.width)

    def keep_row(self, row: int) -> None:
        """Queue the copy of a row of the chunk to where the one-token head reads."""
        value, space = self.model.plan.head_input, self.workspace
        source = space.rows.floats(value, row + 1).rows(row, row + 1)
        self._copy(space.row.floats(value, 1).pointer, source.pointer, 4 * value.width)

    def _copy(self, to: int, source: int, size_bytes: int) -> None:
        runtime = self.memory.cupy.cuda.runtime
        runtime.memcpyAsync(to, source, size_bytes, _DEVICE_TO_DEVICE, self.stream.ptr)
