"""The CPU runtime: a program over interleaved quantized weights, run by a team of threads.

Every token's arithmetic is the same alone or in a chunk, on one thread or many, so prefill, decode
and prefix reuse agree bit for bit. Prefill runs chunks that end at multiples of 64 positions.
"""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import Checkpoint, LoadOptions, MemoryReport, Progress
from engine.backends.cpu_attention import PAGE_POSITIONS, head_page_bytes
from engine.backends.cpu_buffers import share_buffers, tensor_names
from engine.backends.cpu_instructions import Instruction, segments
from engine.backends.cpu_jit import FEATURES, address_of, require_unchanged_sources
from engine.backends.cpu_lowering import Lowering
from engine.backends.cpu_memory import CHUNK_TOKENS, HEAD_ROWS, Activations
from engine.backends.cpu_threads import Team
from engine.backends.cpu_weights import Weights, planned_bytes
from engine.backends.prompt_bounds import check_token_ids
from engine.errors import InsufficientMemory, InternalError
from engine.gguf import GGUFFile
from engine.kv_cache import PagedSequence, PagePool
from engine.program import Program
from engine.sampler import SampledToken, SamplingParams, TokenScore, sample, score_token

MAX_THREADS = 16
MEBIBYTE = 1 << 20
PREFILL_SEGMENT_MULTIPLICATIONS = 500_000_000
DECODE_SEGMENT_BYTES = 200_000_000
STATE_WORDS = 8

require_unchanged_sources()


def load(
    file: GGUFFile, program: Program, options: LoadOptions, progress: Progress
) -> "CpuRuntime":
    """Load a model into memory; raises ModelLoadError or InsufficientMemory, holding nothing."""
    context = _context_length(file, options.context_length)
    return CpuRuntime(file, program, options, context, progress)


def _context_length(file: GGUFFile, wanted: int) -> int:
    trained = int(file.metadata[f"{file.metadata['general.architecture']}.context_length"])
    return min(wanted, trained) if wanted else trained


def default_threads() -> int:
    """As many threads as this process may run at once, at most MAX_THREADS."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(count, MAX_THREADS))


class CpuSequence(PagedSequence):
    """A paged sequence and the logits after its last token."""

    def __init__(self, pool: PagePool, max_positions: int, *, cache_prompt: bool) -> None:
        super().__init__(pool, max_positions, cache_prompt=cache_prompt)
        self.logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Table:
    """Instructions as the team reads them, and where prefill and decode pause for a checkpoint."""

    instructions: list[Instruction]
    words: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, instructions: list[Instruction]) -> "_Table":
        return cls(instructions, np.array([i.words() for i in instructions], np.int64))

    def runs(self, n_tokens: int) -> list[tuple[int, int]]:
        """Segments [first, end) between checkpoints."""
        if n_tokens == 1:
            return segments(self.instructions, DECODE_SEGMENT_BYTES, lambda i: i.weight_bytes)
        limit = PREFILL_SEGMENT_MULTIPLICATIONS // CHUNK_TOKENS
        return segments(self.instructions, limit, lambda i: i.multiplications)


class CpuRuntime:
    """engine.backends.Runtime on the CPU."""

    kv_dtype = "f32"
    device = "cpu"

    def __init__(
        self,
        file: GGUFFile,
        program: Program,
        options: LoadOptions,
        context_length: int,
        progress: Progress,
    ) -> None:
        self.program = share_buffers(program)
        self.vocab_size = program.logits.width
        self.context_length = context_length
        self.n_threads = options.n_threads or default_threads()
        self._limit_bytes = options.memory_limit_mb * MEBIBYTE
        names, vectors = tensor_names(program)
        kv = program.kv
        self._page_bytes = kv.n_layers * kv.n_kv_heads * head_page_bytes(kv.head_dim)
        self._require_memory(planned_bytes(file.tensors, names, vectors), 0)
        self._activations = Activations(self.program)
        self._weights = Weights()
        tensors = [file.tensors[name] for name in names]
        self._weights.load(tensors, vectors, self.n_threads, progress)
        self._lower()
        self._weights_bytes = self._weights.nbytes
        self._require_memory(self._weights_bytes, self._workspace_bytes)
        self._pool = PagePool(self._page_bytes, PAGE_POSITIONS, self._kv_capacity(options))
        self._state = np.zeros(STATE_WORDS, np.int64)
        self._ids = np.zeros(CHUNK_TOKENS, np.int64)
        self._closed = False

    def _lower(self) -> None:
        lowering = Lowering(self.program, self._weights, self._activations, self.context_length)
        self._body = _Table.of(lowering.lower(self.program.body))
        self._head = _Table.of(lowering.lower(self.program.head))
        self._lowering = lowering
        n_instructions = max(len(self._body.words), len(self._head.words))
        self._body_runs = {n: self._body.runs(n) for n in (1, CHUNK_TOKENS)}
        self._team = Team(self.n_threads, lowering.scratch_bytes, n_instructions)

    @property
    def _workspace_bytes(self) -> int:
        tables = self._body.words.nbytes + self._head.words.nbytes
        return self._activations.nbytes + self._team.nbytes + tables

    def _require_memory(self, weights_bytes: int, workspace_bytes: int) -> None:
        required = weights_bytes + workspace_bytes + self._page_bytes
        if self._limit_bytes and required > self._limit_bytes:
            self._close_team()
            raise InsufficientMemory(
                "weights, workspace and one page of KV cache do not fit --memory-limit-mb",
                required_bytes=required,
                available_bytes=self._limit_bytes,
            )

    def _close_team(self) -> None:
        team = getattr(self, "_team", None)
        if team is not None:
            team.close()

    def _kv_capacity(self, options: LoadOptions) -> int:
        pages = -(-self.context_length // PAGE_POSITIONS)
        capacity = options.kv_cache_mb * MEBIBYTE or 2 * pages * self._page_bytes
        if self._limit_bytes:
            left = self._limit_bytes - self._weights_bytes - self._workspace_bytes
            capacity = min(capacity, left)
        return capacity

    def memory(self) -> MemoryReport:
        """Bytes held now."""
        return MemoryReport(
            weights_bytes=self._weights_bytes,
            kv_bytes=self._pool.used_bytes,
            workspace_bytes=self._workspace_bytes,
            limit_bytes=self._limit_bytes,
        )

    def device_facts(self) -> dict[str, Any]:
        """What the arithmetic depends on."""
        return {
            "device": "cpu",
            "machine": platform.machine(),
            "n_threads": self.n_threads,
            "vector": "avx2" if "avx2" in FEATURES else "portable",
            "activations": "int16 blocks of 32",
        }

    def verify_residency(self) -> None:
        """Weights are this process's own memory; raises InternalError if any was lost."""
        if self._closed or not self._weights.matrices:
            raise InternalError("the model's weights are no longer in memory")

    def open_sequence(self, *, cache_prompt: bool = False) -> CpuSequence:
        """A fresh sequence; the caller closes it."""
        return CpuSequence(self._pool, self.context_length, cache_prompt=cache_prompt)

    def _run_body(
        self, sequence: CpuSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        n, first = len(token_ids), sequence.n_tokens
        sequence.reserve(first + n)
        self._ids[:n] = token_ids
        self._set_state(n, first, address_of(sequence.page_table))
        for index, (start, end) in enumerate(self._body_runs[1 if n == 1 else CHUNK_TOKENS]):
            if index:
                checkpoint()
            self._team.run(self._body.words, start, end, address_of(self._state))
        sequence.token_ids.extend(token_ids)

    def _set_state(self, n_tokens: int, first: int, page_table: int) -> None:
        self._state[:4] = (n_tokens, first, page_table, address_of(self._ids))

    def _run_head(self, rows: slice) -> NDArray[np.float32]:
        """Logits of at most HEAD_ROWS rows of the last chunk; a view, valid until the next run."""
        inputs = self._activations.rows(self.program.head_input)
        n = rows.stop - rows.start
        if rows.start:
            inputs[:n] = inputs[rows].copy()
        self._set_state(n, 0, 0)
        self._team.run(self._head.words, 0, len(self._head.words), address_of(self._state))
        return self._activations.rows(self.program.logits)[:n]

    def _chunks(
        self, sequence: CpuSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> Iterator[tuple[int, int]]:
        """Run the body chunk by chunk; yields (place in token_ids, tokens) of each."""
        check_token_ids(
            sequence.n_tokens,
            token_ids,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        at = 0
        while at < len(token_ids):
            size = min(CHUNK_TOKENS - sequence.n_tokens % CHUNK_TOKENS, len(token_ids) - at)
            checkpoint()
            self._run_body(sequence, token_ids[at : at + size], checkpoint)
            yield at, size
            at += size

    def prefill(
        self, sequence: CpuSequence, token_ids: Sequence[int], checkpoint: Checkpoint
    ) -> None:
        """Add tokens to the sequence and keep the logits after the last one."""
        reused = sequence.reuse(token_ids) if sequence.n_tokens == 0 else 0
        *_, (_, size) = self._chunks(sequence, token_ids[reused:], checkpoint)
        checkpoint()
        sequence.logits = self._run_head(slice(size - 1, size))[0].copy()

    def tokens(
        self, sequence: CpuSequence, sampling: SamplingParams, checkpoint: Checkpoint
    ) -> Iterator[SampledToken]:
        """Sample, then decode, for as long as the caller asks and the context has room."""
        index = 0
        while sequence.logits is not None:
            token = sample(sequence.logits, sampling, index, sequence.token_ids)
            yield token
            if sequence.n_tokens >= self.context_length:
                return
            checkpoint()
            self._run_body(sequence, (token.token_id,), checkpoint)
            np.copyto(sequence.logits, self._run_head(slice(0, 1))[0])
            index += 1

    def _rows(
        self, token_ids: Sequence[int], first: int, checkpoint: Checkpoint
    ) -> Iterator[NDArray[np.float32]]:
        """Logits after each position from `first` on, one row at a time."""
        sequence = self.open_sequence()
        try:
            for at, size in self._chunks(sequence, token_ids, checkpoint):
                row = max(0, first - at)
                while row < size:
                    end = min(row + HEAD_ROWS, size)
                    yield from self._run_head(slice(row, end))
                    row = end
                    checkpoint()
        finally:
            sequence.close()

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], checkpoint: Checkpoint
    ) -> list[TokenScore]:
        """Each completion token's score given everything before it, in one pass."""
        if not completion_ids:
            return []
        token_ids = [*prompt_ids, *completion_ids[:-1]]
        rows = self._rows(token_ids, len(prompt_ids) - 1, checkpoint)
        return [score_token(row, one) for row, one in zip(rows, completion_ids, strict=True)]

    def logits(self, token_ids: Sequence[int], checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Logits after every position, float32 [tokens, vocab]."""
        rows = np.empty((len(token_ids), self.vocab_size), np.float32)
        for index, row in enumerate(self._rows(token_ids, 0, checkpoint)):
            rows[index] = row
        return rows

    def close(self) -> None:
        """Free threads, pages and weights; idempotent."""
        if not self._closed:
            self._closed = True
            self._team.close()
            self._pool.close()
            self._weights, self._weights_bytes = Weights(), 0
