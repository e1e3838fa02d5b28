"""Steps over many tokens at once: GEMM on tensor cores, flash attention, grouped experts."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from engine.backends.cuda_buffers import Buffers
from engine.backends.cuda_model import (
    Bound,
    BoundAttention,
    BoundElement,
    BoundEmbed,
    BoundExperts,
    BoundGated,
    BoundLinear,
    BoundNorm,
)
from engine.backends.cuda_plan import EmbedStep
from engine.program import Add, GatedActivation, RmsNorm, Value
from kernels import elementwise, moe
from kernels.arrays import DeviceArray
from kernels.attention import (
    AttentionLayer,
    KvPages,
    Projections,
    attention_prefill,
    rope_append,
)
from kernels.context import KernelContext
from kernels.embed import add_position, embed
from kernels.experts_float import ExpertsKind, experts_float
from kernels.gemm import GemmEpilogue, GemmOutput, GroupedGemm, gemm, gemm_float, grouped_gemm
from kernels.norm import norm

GATED_EPILOGUE: dict[str, GemmEpilogue] = {"silu": "SILU", "clamped_swiglu": "CLAMPED"}
GATED_KIND: dict[str, ExpertsKind] = {"silu": "SILU", "clamped_swiglu": "CLAMPED"}
PagesOf = Callable[[int], KvPages]


@dataclass(frozen=True)
class Chunk:
    """Rows to run: token ids i32[rows], position i32[1] of the first, pages of a layer."""

    rows: int
    token_ids: DeviceArray
    position: DeviceArray
    pages: PagesOf


@dataclass(frozen=True)
class ChunkExecutor:
    """Runs bound steps over the rows of a chunk in `buffers`.

    `few` lets under 64 rows take the kernels of few rows, which add in another order.
    """

    context: KernelContext
    buffers: Buffers
    few: bool = True

    def run(self, bound: Bound, chunk: Chunk) -> None:
        """Queue the kernels of one step."""
        match bound:
            case BoundEmbed():
                self._embed(bound, chunk)
            case BoundNorm():
                self._norm(bound, chunk.rows)
            case BoundLinear():
                self._linear(bound, chunk.rows)
            case BoundGated():
                self._gated(bound, chunk.rows)
            case BoundAttention():
                self._attention(bound, chunk)
            case BoundExperts():
                self._experts(bound, chunk.rows)
            case BoundElement():
                self._element(bound, chunk.rows)

    def _embed(self, bound: BoundEmbed, chunk: Chunk) -> None:
        if isinstance(bound.step, EmbedStep):
            out = self.buffers.floats(bound.step.op.out, chunk.rows)
            embed(self.context, out, bound.table, chunk.token_ids)
        else:
            x = self.buffers.floats(bound.step.op.x, chunk.rows)
            add_position(self.context, x, bound.table, chunk.position)

    def _norm(self, bound: BoundNorm, rows: int) -> None:
        op = bound.step.op
        x = self.buffers.floats(op.x, rows)
        out = self.buffers.outputs(op.out, rows)
        norm(self.context, x, (bound.weight, bound.bias), out, op.eps)

    def _half_input(
        self, x: Value, rms: RmsNorm | None, weight: DeviceArray | None, rows: int
    ) -> DeviceArray:
        """The input of quantized linears as halves, normalised or converted where it must be."""
        half = None if rms else self.buffers.halves(x, rows)
        if half is not None:
            return half
        out = self.buffers.scratch("input_half", (rows, x.width), "f16")
        source = self.buffers.floats(x, rows)
        if rms and weight:
            norm(self.context, source, (weight, None), (None, out), rms.eps)
        else:
            elementwise.elementwise(self.context, "copy", (source, None), (None, out))
        return out

    def _float_input(self, bound: BoundLinear, rows: int) -> DeviceArray:
        step = bound.step
        source = self.buffers.floats(step.x, rows)
        if step.norm is None or bound.norm_weight is None:
            return source
        out = self.buffers.scratch("input_float", (rows, step.x.width), "f32")
        norm(self.context, source, (bound.norm_weight, None), (out, None), step.norm.eps)
        return out

    def _linear(self, bound: BoundLinear, rows: int) -> None:
        outs = [
            self.buffers.floats(bound.step.residual or linear.out, rows)
            for linear in bound.step.linears
        ]
        self.linear_into(bound, rows, outs)

    def linear_into(self, bound: BoundLinear, rows: int, outs: list[DeviceArray]) -> None:
        """The linears of a step into given outputs."""
        step, is_float = bound.step, bound.matrices[0].is_float
        if is_float:
            x = self._float_input(bound, rows)
        else:
            x = self._half_input(step.x, step.norm, bound.norm_weight, rows)
        if is_float:
            for matrix, bias, out in zip(bound.matrices, bound.biases, outs, strict=True):
                gemm_float(self.context, x, matrix, out, bias, add=bool(step.residual))
            return
        outputs = map(GemmOutput, bound.matrices, outs, bound.biases)
        for _, alike in groupby(outputs, lambda output: output.matrix.type):
            epilogue: GemmEpilogue = "ADD" if step.residual else "STORE"
            gemm(self.context, x, tuple(alike), epilogue, few=self.few)

    def _gated(self, bound: BoundGated, rows: int) -> None:
        step = bound.step
        x = self._half_input(step.x, step.norm, bound.norm_weight, rows)
        out = self.buffers.halves(step.out, rows)
        assert out is not None
        outputs = (GemmOutput(bound.matrix, out),)
        gemm(self.context, x, outputs, GATED_EPILOGUE[step.kind], few=self.few)

    def _attention(self, bound: BoundAttention, chunk: Chunk) -> None:
        op, rows = bound.step.op, chunk.rows
        layer = AttentionLayer(
            bound.shape, bound.rotation, chunk.pages(op.layer), chunk.position, bound.sinks
        )
        q_out = self.buffers.scratch("q", (rows, op.q.width), "f16")
        x = Projections(*(self.buffers.floats(v, rows) for v in (op.q, op.k, op.v)))
        rope_append(self.context, x, q_out, layer)
        attention_prefill(self.context, q_out, self.buffers.outputs(op.out, rows), layer)

    def _experts(self, bound: BoundExperts, rows: int) -> None:
        op, b = bound.step.op, self.buffers
        x = b.floats(bound.step.norm.x, rows)
        full = b.scratch("input_float", (rows, op.x.width), "f32")
        half = b.scratch("input_half", (rows, op.x.width), "f16")
        norm(self.context, x, (bound.norm_weight, None), (full, half), bound.step.norm.eps)
        logits = b.scratch("router", (rows, op.n_experts), "f32")
        gemm_float(self.context, full, bound.router, logits, bound.router_bias)
        routing = b.routing(op.n_experts, op.top_k, rows)
        moe.route(self.context, logits, routing)
        y = b.scratch("expert_out", (rows * op.top_k, op.out.width), "f32")
        if bound.step.exact:
            self._exact_experts(bound, full, y, routing)
        else:
            self._packed_experts(bound, half, y, routing)
        out = b.floats(bound.step.target, rows)
        moe.combine(self.context, y, out, op.top_k, add=bool(bound.step.residual))

    def _packed_experts(
        self, bound: BoundExperts, x: DeviceArray, y: DeviceArray, routing: moe.Routing
    ) -> None:
        op, rows = bound.step.op, x.shape[0]
        hidden = self.buffers.scratch("hidden", (rows * op.top_k, op.hidden), "f16")
        epilogue = GATED_EPILOGUE[op.kind]
        first = GroupedGemm(
            bound.gate_up, bound.gate_up_bias, routing, rows, epilogue, "EXPERT_IN", self.few
        )
        grouped_gemm(self.context, x, hidden, first)
        last = GroupedGemm(
            bound.down, bound.down_bias, routing, rows, "STORE", "EXPERT_OUT", self.few
        )
        grouped_gemm(self.context, hidden, y, last)

    def _exact_experts(
        self, bound: BoundExperts, x: DeviceArray, y: DeviceArray, routing: moe.Routing
    ) -> None:
        op = bound.step.op
        hidden = self.buffers.scratch("hidden", (y.shape[0], op.hidden), "f32")
        gate_up, down = (bound.gate_up, bound.gate_up_bias), (bound.down, bound.down_bias)
        experts_float(self.context, x, gate_up, hidden, routing, GATED_KIND[op.kind])
        experts_float(self.context, hidden, down, y, routing, "WEIGHTED")

    def _element(self, bound: BoundElement, rows: int) -> None:
        op, b = bound.step.op, self.buffers
        out = b.outputs(op.out, rows)
        if isinstance(op, Add):
            operands = (b.floats(op.x, rows), b.floats(op.y, rows))
            elementwise.elementwise(self.context, "add", operands, out)
        elif isinstance(op, GatedActivation):
            operands = (b.floats(op.gate, rows), b.floats(op.up, rows))
            elementwise.elementwise(self.context, op.kind, operands, out)
        else:
            elementwise.elementwise(self.context, "gelu", (b.floats(op.x, rows), None), out)
