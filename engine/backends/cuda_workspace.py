"""The arrays that one sequence at a time runs in: activations, token ids, logits, page table."""

from dataclasses import dataclass

from engine.backends.cuda_buffers import Buffers
from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_plan import Plan
from engine.program import KvShape
from kernels.arrays import ITEM_BYTES, DeviceArray
from kernels.attention import PAGE_TOKENS, KvPages
from kernels.sample import PARAMETER_WORDS, STATE_WORDS, Sampler

CHUNK_TOKENS = 4096
HEAD_ROWS = 32


@dataclass(frozen=True)
class Workspace:
    """Activations of `rows`, chunk_tokens of them, and of the one decoded `row`; what both share.

    `token` and `position` i32[1] are the sampler's state, `first` i32[1] is the position of a
    chunk's first token, `ids` i32[chunk_tokens], `page_table` u64[pages of the context],
    `logit_rows` f32[HEAD_ROWS, vocab]; a page holds `layer_bytes` of each layer.
    """

    chunk_tokens: int
    rows: Buffers
    row: Buffers
    sampler: Sampler
    token: DeviceArray
    position: DeviceArray
    first: DeviceArray
    ids: DeviceArray
    page_table: DeviceArray
    logit_rows: DeviceArray
    layer_bytes: int
    page_bytes: int

    @classmethod
    def allocate(
        cls, plan: Plan, kv: KvShape, memory: DevicePool, n_blocks: int, context_length: int
    ) -> "Workspace":
        """All arrays, for a device of `n_blocks` multiprocessors; raises InsufficientMemory."""
        n_pages = -(-context_length // PAGE_TOKENS)
        chunk_tokens = min(CHUNK_TOKENS, n_pages * PAGE_TOKENS)
        rows = Buffers(plan, memory, chunk_tokens)
        rows.reserve_for_chunks()
        row = Buffers(plan, memory, 1, only_floats=True)
        row.reserve_for_chunks()
        sampler = _sampler(memory, plan.logits.width, n_blocks)
        first = memory.array((1,), "i32", "workspace")
        ids = memory.array((chunk_tokens,), "i32", "workspace")
        memory.zero(ids)
        page_table = memory.array((n_pages,), "u64", "workspace")
        logit_rows = memory.array((HEAD_ROWS, plan.logits.width), "f32", "workspace")
        rows.logits, row.logits = logit_rows, sampler.logits
        state, layer_bytes = sampler.state.pointer, _layer_bytes(kv)
        return cls(
            chunk_tokens, rows, row, sampler,
            DeviceArray(state, "i32", (1,)), DeviceArray(state + ITEM_BYTES["i32"], "i32", (1,)),
            first, ids, page_table, logit_rows, layer_bytes, kv.n_layers * layer_bytes,
        )  # fmt: skip

    @property
    def staging(self) -> DeviceArray:
        """A large array u8[n] that is free until a chunk runs."""
        return self.rows.whole("input_float")

    def pages(self, layer: int) -> KvPages:
        """Where a layer's keys and values are in each page."""
        return KvPages(self.page_table, self.page_bytes, layer * self.layer_bytes)


def _layer_bytes(kv: KvShape) -> int:
    return 2 * kv.n_kv_heads * PAGE_TOKENS * kv.head_dim * ITEM_BYTES["f16"]


def _sampler(memory: DevicePool, vocab: int, n_blocks: int) -> Sampler:
    state = memory.array((STATE_WORDS,), "i32", "workspace")
    sampler = Sampler(
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
    memory.zero(sampler.seen)
    return sampler
