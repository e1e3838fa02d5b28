"""From a Program to instructions: addresses resolved, kernels chosen, products kept quantized."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import cpu_attention, cpu_experts, cpu_kernels, cpu_vectors
from engine.backends.cpu_buffers import values
from engine.backends.cpu_instructions import Instruction, Region, overlap, place_barriers, region_of
from engine.backends.cpu_jit import address_of
from engine.backends.cpu_layouts import X_BLOCK
from engine.backends.cpu_memory import CHUNK_TOKENS, Activations
from engine.backends.cpu_weights import Matrix, Weights
from engine.program import (
    Add,
    AddPosition,
    Attention,
    Embed,
    GatedActivation,
    Gelu,
    LayerNorm,
    Linear,
    MixtureOfExperts,
    Op,
    Program,
    RmsNorm,
    Rope,
    Value,
)  # fmt: skip

NO_WINDOW = 1 << 40
BLOCKS_PER_UNIT = 8


class Lowering:
    """Lowers a program's operations over given weights and activation memory."""

    def __init__(
        self, program: Program, weights: Weights, memory: Activations, context_length: int
    ) -> None:
        self._weights = weights
        self._memory = memory
        self._program = program
        self.row_floats = context_length + 2 * cpu_attention.PAGE_POSITIONS
        self._quantized: set[Value] = set()
        self._rope_tables: dict[tuple[tuple[float, ...], float], tuple[int, int]] = {}
        self._out: list[Instruction] = []
        self._constants: list[NDArray[np.float32]] = []

    @property
    def scratch_bytes(self) -> int:
        """What one thread needs: sums and score rows, or one unpacked block."""
        scores = cpu_attention.HEADS_AT_ONCE * self.row_floats + cpu_attention.HEADS_AT_ONCE
        return 4 * (cpu_attention.SUMS_FLOATS + scores) + 4 * 256 * 16

    def lower(self, ops: Sequence[Op]) -> list[Instruction]:
        """The instructions of a straight line of operations, barriers placed."""
        self._out = []
        self._quantized.clear()
        self._rope_tables.clear()
        index = 0
        while index < len(ops):
            op, after = ops[index], ops[index + 1 :]
            residual = _residual(op, after, self._program.head_input)
            if residual is not None and isinstance(op, Linear):
                self._linear(op, residual)
                index += 2
            else:
                _LOWER[type(op)](self, op)
                index += 1
        place_barriers(self._out)
        return self._out

    def _emit(self, instruction: Instruction) -> None:
        for region in instruction.writes:
            stale = {v for v in self._quantized if overlap([region_of(v)], [region])}
            self._quantized -= stale
        self._out.append(instruction)

    def _vector(self, name: str | None) -> int:
        return 0 if name is None else address_of(self._weights.vectors[name])

    def _embed(self, op: Embed | AddPosition) -> None:
        by_position = isinstance(op, AddPosition)
        out = op.x if isinstance(op, AddPosition) else op.out
        table = self._weights.matrices[op.table]
        self._emit(
            Instruction(
                cpu_kernels.embed(table.layout.index, by_position),
                (table.address, table.tile_bytes, table.n_blocks, *self._memory.place(out)),
                per_token=1,
                reads=[region_of(out)] if by_position else [],
                writes=[region_of(out)],
            )
        )

    def _norm(self, op: RmsNorm | LayerNorm) -> None:
        is_layer = isinstance(op, LayerNorm)
        places = (*self._memory.place(op.out), *self._memory.place(op.x))
        bias = self._vector(op.bias) if isinstance(op, LayerNorm) else 0
        self._emit(
            Instruction(
                cpu_kernels.layer_norm if is_layer else cpu_kernels.rms_norm,
                (*places, op.x.width, self._vector(op.weight), bias, float(op.eps)),
                per_token=1,
                reads=[region_of(op.x)],
                writes=[region_of(op.out)],
            )
        )

    def _input(self, x: Value, matrix: Matrix) -> tuple[int, int, Region]:
        """Where a product reads x: itself, or its int16 twin, made if it is stale."""
        if not matrix.layout.quantized:
            return (*self._memory.place(x), region_of(x))
        address, stride = self._memory.twin(x)
        twin: Region = (x, 0, 1)
        if x not in self._quantized:
            n_blocks = x.width // X_BLOCK
            per_token = -(-n_blocks // BLOCKS_PER_UNIT)
            self._emit(
                Instruction(
                    cpu_kernels.quantize,
                    (address, stride, *self._memory.place(x), n_blocks, per_token),
                    per_token=per_token,
                    reads=[region_of(x)],
                    writes=[twin],
                )
            )
            self._quantized.add(x)
        return address, stride, twin

    def _linear(self, op: Linear, residual: Add | None = None) -> None:
        matrix = self._weights.matrices[op.weight]
        x, x_stride, x_region = self._input(op.x, matrix)
        out, other, reads = op.out, (0, 0), [x_region]
        if residual is not None:
            out = residual.out
            added = residual.x if residual.y == op.out else residual.y
            other = self._memory.place(added)
            reads.append(region_of(added))
        self._emit(
            Instruction(
                cpu_kernels.linear(matrix.layout.index),
                (
                    matrix.address, matrix.tile_bytes, matrix.n_blocks, x, x_stride,
                    *self._memory.place(out), matrix.rows, self._vector(op.bias), *other,
                ),
                fixed=matrix.n_tiles,
                reads=reads,
                writes=[region_of(out)],
                weight_bytes=matrix.bytes.nbytes,
                multiplications=matrix.rows * matrix.columns,
            )
        )  # fmt: skip

    def _rope_table(self, op: Rope) -> tuple[int, int, Region]:
        key = (op.inverse_frequencies, op.magnitude)
        n = len(op.inverse_frequencies)
        region: Region = (("rope", *key), 0, 1)
        if key not in self._rope_tables:
            place = (self._memory.reserve(region, CHUNK_TOKENS * 8 * n), 8 * n)
            self._rope_tables[key] = place
            self._constants.append(np.array(op.inverse_frequencies, np.float32))
            frequencies = address_of(self._constants[-1])
            self._emit(
                Instruction(
                    cpu_kernels.rope_table,
                    (*place, frequencies, n, float(op.magnitude)),
                    per_token=1,
                    writes=[region],
                )
            )
        return (*self._rope_tables[key], region)

    def _rope(self, op: Rope) -> None:
        table, stride, region = self._rope_table(op)
        n = len(op.inverse_frequencies)
        pair_stride, partner = (2, 1) if op.pairs == "adjacent" else (1, n)
        place = self._memory.place(op.x)
        self._emit(
            Instruction(
                cpu_kernels.rope,
                (*place, op.n_heads, op.head_dim, table, stride, n, pair_stride, partner),
                per_token=1,
                reads=[region_of(op.x), region],
                writes=[region_of(op.x)],
            )
        )

    def _attention(self, op: Attention) -> None:
        layer = op.layer * op.n_kv_heads * cpu_attention.head_page_bytes(op.head_dim)
        pages: Region = (("kv", op.layer), 0, 1)
        k, v = self._memory.place(op.k), self._memory.place(op.v)
        self._emit(
            Instruction(
                cpu_attention.append,
                (*k, *v, layer, op.n_kv_heads, op.head_dim),
                per_token=op.n_kv_heads,
                reads=[region_of(op.k), region_of(op.v)],
                writes=[pages],
            )
        )
        places = (*self._memory.place(op.out), *self._memory.place(op.q))
        window = NO_WINDOW if op.window is None else op.window
        heads = (op.n_heads, op.n_heads // op.n_kv_heads, op.head_dim)
        tail = (window, self._vector(op.sinks), float(op.scale), self.row_floats)
        self._emit(
            Instruction(
                cpu_attention.attend,
                (*places, layer, *heads, *tail),
                per_token=op.n_heads,
                reads=[region_of(op.q), pages],
                writes=[region_of(op.out)],
                multiplications=2 * op.n_heads * op.head_dim * CHUNK_TOKENS,
            )
        )

    def _combine(self, kind: int, out: Value, x: Value, y: Value) -> None:
        places = [number for value in (out, x, y) for number in self._memory.place(value)]
        self._emit(
            Instruction(
                cpu_kernels.combine(kind),
                (*places, out.width),
                per_token=1,
                reads=[region_of(x), region_of(y)],
                writes=[region_of(out)],
            )
        )

    def _gated(self, op: GatedActivation) -> None:
        kind = cpu_vectors.SILU if op.kind == "silu" else cpu_vectors.CLAMPED_SWIGLU
        self._combine(kind, op.out, op.gate, op.up)

    def _gelu(self, op: Gelu) -> None:
        self._combine(cpu_vectors.GELU, op.out, op.x, op.x)

    def _add(self, op: Add) -> None:
        self._combine(cpu_vectors.ADD, op.out, op.x, op.y)

    def _experts(self, op: MixtureOfExperts) -> None:
        _Experts(self, op).emit()


class _Experts:
    """The instructions of one mixture of experts; slots are (token, rank) pairs."""

    def __init__(self, lowering: Lowering, op: MixtureOfExperts) -> None:
        self._lowering = lowering
        self._op = op
        self._memory = lowering._memory
        self._n_slots = CHUNK_TOKENS * op.top_k
        extra = self._memory.reserve
        words = cpu_experts.routing_words(op.n_experts, self._n_slots)
        self._routing = extra("routing", 8 * words)
        self._weights = extra("expert weights", 4 * self._n_slots)
        self._logits = (extra("router", 4 * CHUNK_TOKENS * op.n_experts), 4 * op.n_experts)
        self._hidden = [self._rows(name, op.hidden) for name in ("gate", "up", "activated")]
        self._y = self._rows("down", op.out.width)

    def _rows(self, name: str, width: int) -> tuple[int, int]:
        stride = 4 * cpu_attention.padded(width)
        return self._memory.reserve(name, stride * self._n_slots), stride

    def emit(self) -> None:
        op, gate, up, act = self._op, *self._hidden
        self._choose()
        self._linear(op.gate, op.gate_bias, op.x, gate, op.top_k)
        self._linear(op.up, op.up_bias, op.x, up, op.top_k)
        kind = cpu_vectors.SILU if op.kind == "silu" else cpu_vectors.CLAMPED_SWIGLU
        arguments = (*act, *gate, *up, op.hidden)
        self._emit(cpu_kernels.combine(kind), arguments, [gate, up], act, op.top_k)
        self._linear(op.down, op.down_bias, act, self._y, 1)
        self._lowering._emit(
            Instruction(
                cpu_experts.gather,
                (*self._memory.place(op.out), *self._y, op.out.width, op.top_k, self._weights),
                per_token=1,
                reads=[(self._y, 0, 1), (self._routing, 0, 1)],
                writes=[region_of(op.out)],
            )
        )

    def _emit(
        self, kernel: Any, arguments: tuple[int, ...], reads: list[object], out: object, units: int
    ) -> None:
        regions: list[Region] = [(memory, 0, 1) for memory in reads]
        self._lowering._emit(
            Instruction(kernel, arguments, per_token=units, reads=regions, writes=[(out, 0, 1)])
        )

    def _choose(self) -> None:
        op, matrix = self._op, self._lowering._weights.matrices[self._op.router]
        x, x_stride, x_region = self._lowering._input(op.x, matrix)
        bias = self._lowering._vector(op.router_bias)
        shape = (matrix.address, matrix.tile_bytes, matrix.n_blocks, x, x_stride)
        self._lowering._emit(
            Instruction(
                cpu_kernels.linear(matrix.layout.index),
                (*shape, *self._logits, matrix.rows, bias, 0, 0),
                fixed=matrix.n_tiles,
                reads=[x_region],
                writes=[(self._logits, 0, 1)],
            )
        )
        sizes = (op.n_experts, op.top_k, self._routing, self._weights, self._n_slots)
        self._lowering._emit(
            Instruction(
                cpu_experts.choose,
                (*self._logits, *sizes),
                fixed=1,
                reads=[(self._logits, 0, 1)],
                writes=[(self._routing, 0, 1)],
            )
        )

    def _linear(
        self, weight: str, bias: str, x: Value | tuple[int, int], out: tuple[int, int], share: int
    ) -> None:
        op, matrix = self._op, self._lowering._weights.matrices[weight]
        address, stride, region = self._input(x, matrix)
        shape = (matrix.address, matrix.tile_bytes, matrix.n_blocks, address, stride)
        routing = (self._routing, op.n_experts, share, matrix.n_tiles)
        self._lowering._emit(
            Instruction(
                cpu_experts.expert_linear(matrix.layout.index),
                (*shape, *out, matrix.rows, self._lowering._vector(bias), *routing),
                per_token=op.top_k * matrix.n_tiles,
                limit=op.n_experts * matrix.n_tiles,
                reads=[region, (self._routing, 0, 1)],
                writes=[(out, 0, 1)],
                weight_bytes=matrix.bytes.nbytes * op.top_k // op.n_experts,
                multiplications=op.top_k * matrix.rows * matrix.columns,
            )
        )

    def _input(self, x: Value | tuple[int, int], matrix: Matrix) -> tuple[int, int, Region]:
        if isinstance(x, Value):
            return self._lowering._input(x, matrix)
        if not matrix.layout.quantized:
            return (*x, (x, 0, 1))
        n_blocks = matrix.columns // X_BLOCK
        twin = (
            self._memory.reserve("activated twin", 80 * n_blocks * self._n_slots),
            80 * n_blocks,
        )
        per_slot = -(-n_blocks // BLOCKS_PER_UNIT)
        arguments = (*twin, *x, n_blocks, per_slot)
        units = per_slot * self._op.top_k
        self._emit(cpu_kernels.quantize, arguments, [x], twin, units)
        return (*twin, (twin, 0, 1))


def _residual(op: Op, after: Sequence[Op], kept: Value) -> Add | None:
    """The Add right after a Linear, if the product is used by nothing else."""
    if not isinstance(op, Linear) or not after or not isinstance(after[0], Add):
        return None
    add = after[0]
    if (add.x == op.out) == (add.y == op.out) or op.out.buffer == kept.buffer:
        return None
    product = [region_of(op.out)]
    for later in after[1:]:
        named = values(later)
        out = named.pop("out", None)
        if overlap(product, [region_of(value) for value in named.values()]):
            return None
        if out == op.out:
            break
    return add


_LOWER: dict[type[Any], Callable[[Lowering, Any], None]] = {
    Embed: Lowering._embed,
    AddPosition: Lowering._embed,
    RmsNorm: Lowering._norm,
    LayerNorm: Lowering._norm,
    Linear: Lowering._linear,
    Rope: Lowering._rope,
    Attention: Lowering._attention,
    GatedActivation: Lowering._gated,
    Gelu: Lowering._gelu,
    MixtureOfExperts: Lowering._experts,
    Add: Lowering._add,
}
