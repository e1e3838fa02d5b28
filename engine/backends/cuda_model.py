"""A planned program with its weights on the device: what prefill and decode execute."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_plan import (
    AttentionStep,
    ElementStep,
    EmbedStep,
    ExpertsStep,
    GatedStep,
    LinearStep,
    NormStep,
    Plan,
    PositionStep,
    Step,
    step_reads,
    step_writes,
)
from engine.backends.cuda_weights import Part, WeightLoader
from engine.errors import ModelLoadError
from engine.gguf import Tensor
from engine.program import Attention, LayerNorm, RmsNorm, Rope
from kernels.arrays import DeviceArray
from kernels.attention import AttentionShape, Rotation, rope_table
from kernels.context import KernelContext
from kernels.gemv import ROUTER_LANES, preferred_tile_rows
from kernels.matrix import PackedMatrix, RowPlacement

_FLOATS = ("F32", "F16", "BF16")
RopeKey = tuple[str, tuple[float, ...], float]


@dataclass(frozen=True)
class BoundEmbed:
    """Token or position embedding."""

    step: EmbedStep | PositionStep
    table: PackedMatrix


@dataclass(frozen=True)
class BoundNorm:
    """A norm's weight and, for LayerNorm, bias."""

    step: NormStep
    weight: DeviceArray
    bias: DeviceArray | None


@dataclass(frozen=True)
class BoundLinear:
    """Linears of one launch."""

    step: LinearStep
    matrices: tuple[PackedMatrix, ...]
    biases: tuple[DeviceArray | None, ...]
    norm_weight: DeviceArray | None


@dataclass(frozen=True)
class BoundGated:
    """Gate and up rows alternate in one matrix."""

    step: GatedStep
    matrix: PackedMatrix
    norm_weight: DeviceArray | None


@dataclass(frozen=True)
class BoundAttention:
    """An attention layer."""

    step: AttentionStep
    shape: AttentionShape
    rotation: Rotation
    sinks: DeviceArray | None


@dataclass(frozen=True)
class BoundExperts:
    """A mixture of experts; `folded_router` f32[width, 32] has the norm weight in it."""

    step: ExpertsStep
    norm_weight: DeviceArray
    router: PackedMatrix
    router_bias: DeviceArray
    folded_router: DeviceArray | None
    lane_bias: DeviceArray | None
    gate_up: PackedMatrix
    gate_up_bias: DeviceArray
    down: PackedMatrix
    down_bias: DeviceArray


@dataclass(frozen=True)
class BoundElement:
    """An elementwise step: no weights."""

    step: ElementStep


Bound = (
    BoundEmbed | BoundNorm | BoundLinear | BoundGated | BoundAttention | BoundExperts
    | BoundElement
)  # fmt: skip


@dataclass(frozen=True)
class BoundModel:
    """The steps of a plan with their weights."""

    plan: Plan
    body: tuple[Bound, ...]
    head: tuple[Bound, ...]

    def distinct_body(self) -> tuple[Bound, ...]:
        """Steps of the body among which is one for each way in which steps choose kernels."""
        return tuple({self._way(bound): bound for bound in self.body}.values())

    def _way(self, bound: Bound) -> tuple[object, ...]:
        """What decides which kernels a step takes: types, shapes and forms, but no addresses."""
        step: Any = bound.step
        op = getattr(step, "op", None)
        has = tuple(type(getattr(step, name, None)) for name in ("norm", "residual", "op"))
        kinds = tuple(getattr(of, "kind", None) for of in (step, op))
        values = (*step_reads(step), *step_writes(step))
        forms = tuple((v.buffer in self.plan.halves, v.buffer in self.plan.floats) for v in values)
        widths = tuple(v.width for v in values)
        parts = tuple(_shape_of(getattr(bound, f.name)) for f in fields(bound) if f.name != "step")
        return type(step), has, kinds, forms, widths, parts


def _shape_of(part: object) -> object:
    """A part of a step without its addresses."""
    match part:
        case PackedMatrix():
            return part.type, part.rows, part.k, part.tile_rows, part.n_experts
        case DeviceArray():
            return part.dtype, part.shape
        case Rotation():
            return part.pairs
        case tuple():
            return tuple(map(_shape_of, part))
        case _:
            return part


@dataclass
class ModelBuilder:
    """Uploads what the steps of a plan need; tensors shared by steps are uploaded once."""

    tensors: Mapping[str, Tensor]
    loader: WeightLoader
    memory: DevicePool
    context: KernelContext
    n_positions: int
    _matrices: dict[tuple[str, ...], PackedMatrix] = field(default_factory=dict)
    _vectors: dict[str, DeviceArray] = field(default_factory=dict)
    _rotations: dict[RopeKey, Rotation] = field(default_factory=dict)

    def build(self, plan: Plan) -> BoundModel:
        """Body and head with their weights."""
        return BoundModel(
            plan, tuple(map(self._bind, plan.body)), tuple(map(self._bind, plan.head))
        )

    def _bind(self, step: Step) -> Bound:
        match step:
            case EmbedStep() | PositionStep():
                return BoundEmbed(step, self._matrix(step.op.table))
            case NormStep():
                bias = step.op.bias if isinstance(step.op, LayerNorm) else None
                weight = self._vector(step.op.weight)
                return BoundNorm(step, weight, self._vector(bias) if bias else None)
            case LinearStep():
                return self._linear(step)
            case GatedStep():
                return BoundGated(step, self._gate_up(step), self._norm(step.norm))
            case AttentionStep():
                return self._attention(step)
            case ExpertsStep():
                return self._experts(step)
            case ElementStep():
                return BoundElement(step)

    def _norm(self, norm: RmsNorm | None) -> DeviceArray | None:
        return self._vector(norm.weight) if norm else None

    def _vector(self, name: str) -> DeviceArray:
        if name not in self._vectors:
            self._vectors[name] = self.loader.vector(self.loader.floats(self.tensors[name]))
        return self._vectors[name]

    def _matrix(self, name: str, tile_rows: int = 0) -> PackedMatrix:
        """One tensor as it is, in tiles of a given height or the one it prefers."""
        if (name,) not in self._matrices:
            tensor = self.tensors[name]
            rows, k = tensor.shape
            self._check_width(tensor)
            tile_rows = tile_rows or preferred_tile_rows(tensor.type, rows, k)
            parts = (Part(tensor, 0, rows, RowPlacement()),)
            self._matrices[(name,)] = self.loader.matrix(tensor.type, parts, tile_rows)
        return self._matrices[(name,)]

    def _check_width(self, tensor: Tensor) -> None:
        if tensor.shape[-1] % 4:
            raise ModelLoadError(
                f"tensor {tensor.name}: rows of {tensor.shape[-1]} weights; "
                "the CUDA kernels need multiples of 4"
            )

    def _linear(self, step: LinearStep) -> BoundLinear:
        rows = sum(linear.out.width for linear in step.linears)
        types = {self.tensors[linear.weight].type for linear in step.linears}
        tile_rows = min(preferred_tile_rows(t, rows, step.x.width) for t in types)
        return BoundLinear(
            step,
            tuple(self._matrix(linear.weight, tile_rows) for linear in step.linears),
            tuple(self._vector(x.bias) if x.bias else None for x in step.linears),
            self._norm(step.norm),
        )

    def _gate_up(self, step: GatedStep) -> PackedMatrix:
        tensors = [self.tensors[linear.weight] for linear in step.linears]
        hidden, k = step.out.width, tensors[0].shape[1]
        parts = tuple(
            Part(tensors[half % len(tensors)], start, start + hidden, RowPlacement(0, 2, half))
            for half in (0, 1)
            for start in ((half * hidden) if len(tensors) == 1 else 0,)
        )
        type_name = tensors[0].type
        tile_rows = preferred_tile_rows(type_name, 2 * hidden, k, gated=True)
        return self.loader.matrix(type_name, parts, tile_rows)

    def _attention(self, step: AttentionStep) -> BoundAttention:
        op = step.op
        return BoundAttention(
            step, attention_shape(op), self._rotation(step.rope),
            self._vector(op.sinks) if op.sinks else None,
        )  # fmt: skip

    def _rotation(self, rope: Rope | None) -> Rotation:
        if rope is None:
            return Rotation("none")
        key = (rope.pairs, rope.inverse_frequencies, rope.magnitude)
        if key not in self._rotations:
            frequencies = np.array(rope.inverse_frequencies, np.float64)
            table = self.memory.array((self.n_positions, len(frequencies), 2), "f32", "workspace")
            source = self.memory.upload(frequencies, "workspace")
            rope_table(self.context, source, table, rope.magnitude)
            self._rotations[key] = Rotation(rope.pairs, table)
        return self._rotations[key]

    def _experts(self, step: ExpertsStep) -> BoundExperts:
        op, tensors = step.op, self.tensors
        gate, up, down = tensors[op.gate], tensors[op.up], tensors[op.down]
        if gate.type != up.type or (down.type in _FLOATS) != step.exact:
            raise ModelLoadError(
                f"experts {op.gate} are {gate.type}, {up.type}, {down.type}; the CUDA backend "
                "runs gate and up of one type, and all three quantized or none"
            )
        width, hidden = op.x.width, op.hidden
        parts = tuple(
            Part(tensor, 0, hidden, RowPlacement(0, 2, half))
            for half, tensor in enumerate((gate, up))
        )
        rows = preferred_tile_rows(gate.type, op.top_k * 2 * hidden, width, gated=True)
        down_rows = preferred_tile_rows(down.type, op.top_k * width, hidden)
        floats = self.loader.floats
        gate_up_bias = np.stack([floats(tensors[n]) for n in (op.gate_bias, op.up_bias)], axis=-1)
        folded, lane_bias = self._folded_router(step)
        return BoundExperts(
            step, self._vector(step.norm.weight), self._matrix(op.router),
            self._vector(op.router_bias), folded, lane_bias,
            self.loader.matrix(gate.type, parts, rows, op.n_experts),
            self.loader.vector(gate_up_bias.reshape(op.n_experts, 2 * hidden)),
            self.loader.matrix(
                down.type, (Part(down, 0, width, RowPlacement()),), down_rows, op.n_experts
            ),
            self.loader.vector(floats(tensors[op.down_bias])),
        )  # fmt: skip

    def _folded_router(self, step: ExpertsStep) -> tuple[DeviceArray | None, DeviceArray | None]:
        """The router times the norm weight, [width, 32], and its bias, -inf past the experts."""
        op = step.op
        if op.n_experts > ROUTER_LANES:
            return None, None
        router = self.tensors[op.router].dequantize()
        gain = self.tensors[step.norm.weight].dequantize()
        folded = np.zeros((op.x.width, ROUTER_LANES), np.float32)
        folded[:, : op.n_experts] = (router * gain).T
        bias = np.full(ROUTER_LANES, -1e30, np.float32)
        bias[: op.n_experts] = self.tensors[op.router_bias].dequantize()
        return self.loader.vector(folded), self.loader.vector(bias)


def attention_shape(op: Attention) -> AttentionShape:
    """The heads of an attention operation; raises ModelLoadError where no kernel fits."""
    if op.head_dim % 16 or not 16 <= op.head_dim <= 128:
        raise ModelLoadError(
            f"layer {op.layer}: heads of {op.head_dim}; the CUDA kernels take multiples of 16 "
            "up to 128"
        )
    return AttentionShape(op.n_heads, op.n_kv_heads, op.head_dim, op.scale, op.window or 0)
