"""One token through the program: fused GEMV steps, captured as a CUDA graph a context bucket."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.backends.cuda_buffers import Buffers
from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_model import (
    Bound,
    BoundAttention,
    BoundExperts,
    BoundGated,
    BoundLinear,
    BoundNorm,
)
from engine.backends.cuda_prefill import GATED_EPILOGUE, Chunk, ChunkExecutor
from engine.backends.cuda_splitting import Bucket, bucket_of, most_keys, splitting
from engine.errors import InternalError
from engine.program import Value
from kernels.arrays import DeviceArray
from kernels.attention import (
    AttentionLayer,
    Projections,
    Splits,
    attention_decode,
    attention_merge,
)
from kernels.context import KernelContext, Launch
from kernels.gemv import (
    MERGED_SPLITS,
    ROUTER_LANES,
    ExpertChoice,
    Gemv,
    GemvEpilogue,
    KeysAhead,
    NormInput,
    Segment,
    SplitInput,
    choose_tuning,
)
from kernels.moe import combine

_MAX_CHOSEN = 8


@dataclass
class Handover:
    """What the steps built so far leave for later ones: the last linear and, by buffer, sums to do.

    `pending` f32[chosen, width] of experts; `split`: attention's parts and how they are merged.
    """

    last: Gemv | None = None
    pending: dict[int, DeviceArray] = field(default_factory=dict)
    split: dict[int, tuple[DeviceArray, SplitInput]] = field(default_factory=dict)

    def copy(self) -> "Handover":
        """The same, unchanged by what this one becomes."""
        return Handover(self.last, dict(self.pending), dict(self.split))


@dataclass
class DecodeBuilder:
    """Writes the launches of one decode step into a list, in order."""

    context: KernelContext
    memory: DevicePool
    buffers: Buffers
    chunk: Chunk
    bucket: Bucket
    logits: DeviceArray
    best: tuple[DeviceArray, DeviceArray]
    shared: dict[str, DeviceArray]
    launches: list[Callable[[], None]] = field(default_factory=list)
    left: Handover = field(default_factory=Handover)
    _coming: BoundAttention | None = None

    def array(self, name: str, shape: tuple[int, ...], dtype: str = "f32") -> DeviceArray:
        """Workspace that all layers and buckets share by name and shape."""
        key = f"{name} {shape}"
        if key not in self.shared:
            self.shared[key] = self.memory.array(shape, dtype, "workspace")
            self.memory.zero(self.shared[key])
        return self.shared[key]

    def build(self, steps: tuple[Bound, ...]) -> list[Callable[[], None]]:
        """The launches of these steps."""
        for i, bound in enumerate(steps):
            following = steps[i + 1] if i + 1 < len(steps) else None
            self._coming = next((b for b in steps[i + 1 :] if isinstance(b, BoundAttention)), None)
            match bound:
                case BoundLinear():
                    self._linear(bound, following)
                case BoundGated():
                    self._gated(bound)
                case BoundAttention():
                    self._attention(bound, following)
                case BoundExperts():
                    self._experts(bound)
                case _:
                    self._plain(bound)
        return self.launches

    def _x(self, value: Value) -> DeviceArray:
        return self.buffers.floats(value, 1)

    def _flush(self, value: Value) -> None:
        """Add what a mixture of experts left pending, for a reader that cannot do it itself."""
        pending = self.left.pending.pop(value.buffer, None)
        if pending is not None:
            x, chosen = self._x(value), pending.shape[0]
            self.launches.append(
                self._serialized(lambda: combine(self.context, pending, x, chosen, add=True))
            )

    def _serialized(self, launch: Callable[[], None]) -> Callable[[], None]:
        """The launch of a kernel of prefill, which does not itself wait for the one before."""

        def queue() -> None:
            with self.context.serialized():
                launch()

        return queue

    def _plain(self, bound: Bound) -> None:
        if isinstance(bound, BoundNorm):
            self._flush(bound.step.op.x)
        executor = ChunkExecutor(self.context, self.buffers)
        self.launches.append(lambda: executor.run(bound, self.chunk))

    def _gemv(self, spec: Gemv) -> None:
        self.left.last = spec
        self.launches.append(lambda: spec.launch(self.context))

    def _linear(self, bound: BoundLinear, following: Bound | None) -> None:
        step = bound.step
        is_head = step.linears[0].out == self.buffers.plan.logits
        if step.residual:
            self._residual(bound, following)
            return
        outs = [self.logits if is_head else self._x(x.out) for x in step.linears]
        norm = (
            NormInput(bound.norm_weight, step.norm.eps) if step.norm and bound.norm_weight else None
        )
        pending = self.left.pending.get(step.x.buffer) if norm else None
        rows = sum(matrix.rows for matrix in bound.matrices)
        self._gemv(
            Gemv(
                tuple(map(Segment, bound.matrices, outs, bound.biases)),
                self._x(step.x),
                "NORM" if norm else "PLAIN",
                "LOGITS" if is_head else "STORE",
                choose_tuning(self.context.limits, bound.matrices, rows, step.x.width),
                norm=norm,
                pending=pending,
                chosen=pending.shape[0] if pending else 0,
                best=self.best if is_head else None,
            )
        )

    def _residual(self, bound: BoundLinear, following: Bound | None) -> None:
        step = bound.step
        matrix, residual = bound.matrices[0], step.residual
        assert residual is not None
        if step.norm:
            raise InternalError("a normalised linear with a residual sum")
        pending = self.left.pending.pop(residual.buffer, None)
        partial, split = self.left.split.pop(step.x.buffer, (None, None))
        routed = self._routes(following, residual)
        epilogue: GemvEpilogue = "ADD_ROUTE" if routed else "ADD"
        chosen = pending.shape[0] if pending else 0
        self._gemv(
            Gemv(
                (Segment(matrix, self._x(residual), bound.biases[0]),),
                partial or self._x(step.x),
                "ATTENTION" if split else "PLAIN",
                epilogue,
                choose_tuning(self.context.limits, (matrix,), matrix.rows, matrix.k),
                split=split,
                pending=pending,
                router=routed.folded_router if routed else None,
                partials=self._partials() if routed else None,
                ahead=None if split or routed or pending else self._ahead(),
                chosen=chosen,
            )
        )

    def _ahead(self) -> KeysAhead | None:
        """What the next layer's attention reads; the end of a layer leaves the memory idle."""
        if self._coming is None:
            return None
        pages = self.chunk.pages(self._coming.step.op.layer)
        return KeysAhead(pages, self._coming.shape, self.chunk.position)

    def _partials(self) -> DeviceArray:
        return self.array("partials", (self.context.limits.n_multiprocessors * (ROUTER_LANES + 1),))

    def _routes(self, following: Bound | None, residual: Value) -> BoundExperts | None:
        """The experts right after a residual sum, if their router can be computed with it."""
        if not isinstance(following, BoundExperts) or following.step.residual != residual:
            return None
        fits = following.folded_router is not None and following.step.op.top_k <= _MAX_CHOSEN
        return following if fits and not following.step.exact else None

    def _gated(self, bound: BoundGated) -> None:
        step = bound.step
        norm = (
            NormInput(bound.norm_weight, step.norm.eps) if step.norm and bound.norm_weight else None
        )
        if norm:
            self._flush(step.x)
        matrix = bound.matrix
        self._gemv(
            Gemv(
                (Segment(matrix, self._x(step.out)),),
                self._x(step.x),
                "NORM" if norm else "PLAIN",
                "SILU" if GATED_EPILOGUE[step.kind] == "SILU" else "CLAMPED",
                choose_tuning(self.context.limits, (matrix,), matrix.rows, matrix.k),
                norm=norm,
            )
        )

    def _attention(self, bound: BoundAttention, following: Bound | None) -> None:
        op, shape = bound.step.op, bound.shape
        how = splitting(shape, self.bucket, self.context.limits)
        merged_by_reader = (
            how.most <= MERGED_SPLITS
            and isinstance(following, BoundLinear)
            and following.step.residual is not None
            and following.step.x == op.out
        )
        splits = Splits(
            self.array("split_out", (shape.n_heads, how.most, shape.head_dim)),
            self.array("split_sums", (shape.n_heads, how.most, 2)),
            how.least_keys,
            how.most,
        )
        layer = AttentionLayer(
            shape, bound.rotation, self.chunk.pages(op.layer), self.chunk.position, bound.sinks
        )
        x = Projections(*(self._x(v) for v in (op.q, op.k, op.v)))
        n_splits = how.splits_of(most_keys(shape, self.bucket))
        self.launches.append(
            lambda: attention_decode(self.context, x, splits, layer, n_splits, how.tuning)
        )
        if merged_by_reader:
            merging = SplitInput(
                splits.sums, self.chunk.position, shape.head_dim, shape.window, how.least_keys,
                bound.sinks,
            )  # fmt: skip
            self.left.split[op.out.buffer] = splits.out, merging
        else:
            out = self._x(op.out)
            self.launches.append(lambda: attention_merge(self.context, splits, out, layer))

    def _experts(self, bound: BoundExperts) -> None:
        op, residual = bound.step.op, bound.step.norm.x
        if not self._routed_before(bound):
            self._flush(residual)
            executor = ChunkExecutor(self.context, self.buffers)
            self.launches.append(self._serialized(lambda: executor.run(bound, self.chunk)))
            return
        assert bound.lane_bias is not None
        limits, partials = self.context.limits, self._partials()
        choice = ExpertChoice(
            partials, limits.n_multiprocessors, bound.lane_bias, op.x.width, bound.step.norm.eps
        )
        hidden = self.array("expert_hidden", (op.top_k, op.hidden))
        pending = self.array("expert_out", (op.top_k, op.x.width))
        gate_up, down = bound.gate_up, bound.down
        self._gemv(
            Gemv(
                (Segment(gate_up, hidden, bound.gate_up_bias),),
                self._x(residual), "EXPERT_IN",
                "SILU" if GATED_EPILOGUE[op.kind] == "SILU" else "CLAMPED",
                choose_tuning(limits, (gate_up,), op.top_k * gate_up.rows, gate_up.k),
                norm=NormInput(bound.norm_weight, bound.step.norm.eps),
                choice=choice, chosen=op.top_k,
            )
        )  # fmt: skip
        self._gemv(
            Gemv(
                (Segment(down, pending, bound.down_bias),), hidden, "EXPERT_OUT_PRO", "EXPERT_OUT",
                choose_tuning(limits, (down,), op.top_k * down.rows, down.k),
                choice=choice, chosen=op.top_k,
            )
        )  # fmt: skip
        self.left.pending[residual.buffer] = pending

    def _routed_before(self, bound: BoundExperts) -> bool:
        """Whether the launch before computed this router's partial logits."""
        last = self.left.last
        return last is not None and last.router is not None and last.router is bound.folded_router


@dataclass
class DecodeGraphs:
    """Captured decode steps by bucket."""

    stream: Any
    context: KernelContext
    launches_of: Callable[[int], list[Callable[[], None]]]
    _graphs: dict[int, Any] = field(default_factory=dict)

    def launch(self, position: int) -> None:
        """Queue the step that decodes the token at this position."""
        bucket = bucket_of(position)
        if bucket not in self._graphs:
            self.capture(bucket)
        self._graphs[bucket].launch(self.stream)

    def capture(self, bucket: int) -> None:
        """Build and capture the step of a bucket, its kernels compiled before."""
        launches = self._noted(bucket)
        self.context.prepare(launch.kernel for launch in launches)
        self.stream.synchronize()
        with self.stream:
            self.stream.begin_capture()
            try:
                self.context.queue(launches)
            finally:
                self._graphs[bucket] = self.stream.end_capture()
            self._graphs[bucket].upload(self.stream)

    def _noted(self, bucket: int) -> list[Launch]:
        self.context.dependent = True
        try:
            with self.context.noting() as launches:
                for launch in self.launches_of(bucket):
                    launch()
        finally:
            self.context.dependent = False
        return launches
