"""From a program's operations to fused steps: what one kernel (or a few) of the GPU does at once.

Peepholes: RmsNorm into the linears after it, up to three linears over one input into one launch,
a residual Add into the linear before it, gate and up with their activation, RoPE with attention,
RmsNorm and Add around a mixture of experts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.errors import InternalError
from engine.program import (
    Add,
    AddPosition,
    Attention,
    Embed,
    Gate,
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
)

TypeOf = Callable[[str], str]
MAX_SEGMENTS = 3


@dataclass(frozen=True)
class EmbedStep:
    """out = table[token]."""

    op: Embed


@dataclass(frozen=True)
class PositionStep:
    """x += table[position]."""

    op: AddPosition


@dataclass(frozen=True)
class LinearStep:
    """Linears over one input, RMS-normalised first if `norm`; added to `residual` in place."""

    linears: tuple[Linear, ...]
    norm: RmsNorm | None = None
    residual: Value | None = None

    @property
    def x(self) -> Value:
        """The input, before the norm."""
        return self.norm.x if self.norm else self.linears[0].x


@dataclass(frozen=True)
class GatedStep:
    """out = activation of gate and up, two quantized linears (or the halves of one)."""

    linears: tuple[Linear, ...]
    out: Value
    kind: Gate
    norm: RmsNorm | None = None

    @property
    def x(self) -> Value:
        """The input, before the norm."""
        return self.norm.x if self.norm else self.linears[0].x


@dataclass(frozen=True)
class AttentionStep:
    """RoPE of q and k, append to the cache, attention."""

    op: Attention
    rope: Rope | None


@dataclass(frozen=True)
class ExpertsStep:
    """Mixture of experts of RMSNorm(x), added to `residual` in place where there is one.

    `exact` experts have float weights and activations.
    """

    op: MixtureOfExperts
    norm: RmsNorm
    residual: Value | None
    exact: bool

    @property
    def target(self) -> Value:
        """What it writes or adds to."""
        return self.residual or self.op.out


@dataclass(frozen=True)
class NormStep:
    """A norm on its own."""

    op: RmsNorm | LayerNorm


@dataclass(frozen=True)
class ElementStep:
    """An elementwise operation on its own."""

    op: Add | Gelu | GatedActivation


Step = (
    EmbedStep | PositionStep | LinearStep | GatedStep | AttentionStep | ExpertsStep
    | NormStep | ElementStep
)  # fmt: skip


def reads(op: Op) -> tuple[Value, ...]:
    """The values an operation reads."""
    match op:
        case Embed():
            return ()
        case AddPosition() | RmsNorm() | LayerNorm() | Linear() | Gelu() | MixtureOfExperts():
            return (op.x,)
        case Rope():
            return (op.x,)
        case Attention():
            return (op.q, op.k, op.v)
        case GatedActivation():
            return (op.gate, op.up)
        case Add():
            return (op.x, op.y)


def written(op: Op) -> Value:
    """The value an operation writes."""
    return op.x if isinstance(op, AddPosition | Rope) else op.out


def ropes_last(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The same operations with each Rope right before the Attention that reads its rows."""
    out: list[Op] = []
    waiting: list[Op] = []
    for op in ops:
        if isinstance(op, Rope):
            waiting.append(op)
            continue
        if isinstance(op, Attention):
            out += waiting
            waiting = []
        out.append(op)
    return (*out, *waiting)


class Fuser:
    """Turns a straight line of operations into steps."""

    def __init__(self, ops: Sequence[Op], type_of: TypeOf, outputs: tuple[Value, ...]) -> None:
        self._ops = ops
        self._type_of = type_of
        self._readers: dict[int, list[Op]] = {}
        for op in ops:
            for buffer in {value.buffer for value in reads(op)}:
                self._readers.setdefault(buffer, []).append(op)
        uses = [value for op in ops for value in reads(op)]
        self._n_uses_of = Counter(value.buffer for value in (*uses, *outputs))

    def _n_uses(self, value: Value) -> int:
        return self._n_uses_of[value.buffer]

    def steps(self) -> Iterator[Step]:
        """The fused steps in order."""
        at = 0
        while at < len(self._ops):
            for rule in (self._experts, self._gated, self._linear, self._attention, self._single):
                found = rule(at)
                if found is not None:
                    step, at = found
                    yield step
                    break

    def _normed(self, at: int) -> tuple[RmsNorm | None, int]:
        """A norm at `at` whose only readers are the linears or experts right after it."""
        op = self._ops[at]
        if not isinstance(op, RmsNorm):
            return None, at
        n_readers = 0
        for later in self._ops[at + 1 :]:
            if not isinstance(later, Linear | MixtureOfExperts) or later.x != op.out:
                break
            n_readers += 1
        return (op, at + 1) if n_readers and n_readers == self._n_uses(op.out) else (None, at)

    def _residual(self, at: int, value: Value) -> Value | None:
        """The buffer that an Add at `at` adds `value` to, in place."""
        op = self._ops[at] if at < len(self._ops) else None
        if not isinstance(op, Add) or self._n_uses(value) != 1:
            return None
        if op.y == value and op.out == op.x:
            return op.x
        return op.y if op.x == value and op.out == op.y else None

    def _experts(self, at: int) -> tuple[Step, int] | None:
        norm, start = self._normed(at)
        op = self._ops[start] if start < len(self._ops) else None
        if not isinstance(op, MixtureOfExperts):
            return None
        if norm is None:
            raise InternalError("a mixture of experts without its norm")
        residual = self._residual(start + 1, op.out)
        residual = residual if residual == norm.x else None
        exact = self._type_of(op.gate) in _FLOATS
        return ExpertsStep(op, norm, residual, exact), start + (2 if residual else 1)

    def _linears(self, start: int) -> tuple[Linear, ...]:
        """Consecutive linears over one input that one launch can do."""
        group: list[Linear] = []
        for op in self._ops[start : start + MAX_SEGMENTS]:
            if not isinstance(op, Linear) or (group and op.x != group[0].x):
                break
            group.append(op)
        types = [self._type_of(linear.weight) for linear in group]
        mixed = len({t in _FLOATS for t in types}) > 1 or len(set(types[:2])) > 1
        size = 1 if mixed else len(group)
        return tuple(group[:size])

    def _gated(self, at: int) -> tuple[Step, int] | None:
        norm, start = self._normed(at)
        for count in (1, 2):
            linears = self._ops[start : start + count]
            op = self._ops[start + count] if start + count < len(self._ops) else None
            if isinstance(op, GatedActivation) and all(isinstance(x, Linear) for x in linears):
                step = self._gated_step(norm, [x for x in linears if isinstance(x, Linear)], op)
                if step:
                    return step, start + count + 1
        return None

    def _gated_step(
        self, norm: RmsNorm | None, linears: list[Linear], op: GatedActivation
    ) -> GatedStep | None:
        first = linears[0]
        types = {self._type_of(x.weight) for x in linears}
        if len(types) > 1 or types & _FLOATS or any(x.bias or x.x != first.x for x in linears):
            return None
        if len(linears) == 1:
            half = first.out.width // 2
            wanted = (first.out.columns(0, half), first.out.columns(half, 2 * half))
        else:
            wanted = (linears[0].out, linears[1].out)
            if (op.up, op.gate) == wanted:
                linears, wanted = linears[::-1], wanted[::-1]
        if (op.gate, op.up) != wanted or not self._feeds_quantized(op.out):
            return None
        return GatedStep(tuple(linears), op.out, op.kind, norm)

    def _feeds_quantized(self, value: Value) -> bool:
        """Whether only quantized linears read a value."""
        return all(
            isinstance(op, Linear) and self._type_of(op.weight) not in _FLOATS
            for op in self._readers.get(value.buffer, ())
        )

    def _linear(self, at: int) -> tuple[Step, int] | None:
        norm, start = self._normed(at)
        if not isinstance(self._ops[start], Linear):
            return None
        linears = self._linears(start)
        end = start + len(linears)
        if norm and any(
            isinstance(op, Linear) and op.x == norm.out for op in self._ops[end : end + 1]
        ):
            return (NormStep(norm), at + 1)
        if len(linears) == 1:
            residual = self._residual(end, linears[0].out)
            if residual:
                return LinearStep(linears, norm, residual), end + 1
        return LinearStep(linears, norm), end

    def _attention(self, at: int) -> tuple[Step, int] | None:
        ops = self._ops[at : at + 3]
        if isinstance(ops[0], Attention):
            return AttentionStep(ops[0], None), at + 1
        if len(ops) < 3 or not isinstance(ops[0], Rope):
            return None
        first, (second, attention) = ops[0], ops[1:]
        if not isinstance(second, Rope) or not isinstance(attention, Attention):
            raise InternalError("RoPE that is not of q and k right before attention")
        pair = {first.x: first, second.x: second}
        if set(pair) != {attention.q, attention.k} or _angles(first) != _angles(second):
            raise InternalError("q and k are rotated differently")
        return AttentionStep(attention, pair[attention.q]), at + 3

    def _single(self, at: int) -> tuple[Step, int]:
        op = self._ops[at]
        match op:
            case Embed():
                return EmbedStep(op), at + 1
            case AddPosition():
                return PositionStep(op), at + 1
            case RmsNorm() | LayerNorm():
                return NormStep(op), at + 1
            case Add() | Gelu() | GatedActivation():
                return ElementStep(op), at + 1
            case _:
                raise InternalError(f"no kernel for {type(op).__name__} here")


_FLOATS = {"F32", "F16", "BF16"}


def _angles(rope: Rope) -> tuple[object, ...]:
    return rope.pairs, rope.inverse_frequencies, rope.magnitude, rope.head_dim


def step_reads(step: Step) -> tuple[Value, ...]:
    """The values a step reads, its residual included."""
    match step:
        case LinearStep():
            return (step.x, *((step.residual,) if step.residual else ()))
        case GatedStep():
            return (step.x,)
        case ExpertsStep():
            return (step.norm.x,)
        case _:
            return reads(step.op)


def step_writes(step: Step) -> tuple[Value, ...]:
    """The values a step writes."""
    match step:
        case LinearStep():
            return (step.residual,) if step.residual else tuple(x.out for x in step.linears)
        case GatedStep():
            return (step.out,)
        case ExpertsStep():
            return (step.target,)
        case _:
            return (written(step.op),)


@dataclass(frozen=True)
class Plan:
    """The fused program: steps of body and head, and buffers as physical slots.

    `slots[buffer]` is the slot of a buffer that exists in memory, `slot_widths` their widths.
    `halves` are buffers that some quantized linear reads as they are, `floats` those that anything
    else reads.
    """

    body: tuple[Step, ...]
    head: tuple[Step, ...]
    head_input: Value
    logits: Value
    slots: dict[int, int]
    slot_widths: tuple[int, ...]
    halves: frozenset[int]
    floats: frozenset[int]


def plan(program: Program, type_of: TypeOf) -> Plan:
    """Fuse a program; raises InternalError for a shape of program that no kernel covers."""
    body_ops = ropes_last(program.body)
    body = tuple(Fuser(body_ops, type_of, (program.head_input,)).steps())
    head = tuple(Fuser(program.head, type_of, (program.logits,)).steps())
    slots, widths = _assign_slots((*body, *head), program)
    halves, floats = _forms((*body, *head), type_of, program)
    return Plan(body, head, program.head_input, program.logits, slots, widths, halves, floats)


def _assign_slots(
    steps: tuple[Step, ...], program: Program
) -> tuple[dict[int, int], tuple[int, ...]]:
    """Physical slots by liveness: a buffer's slot is free again after its last use."""
    last = dict.fromkeys((program.head_input.buffer, program.logits.buffer), len(steps))
    for i, step in enumerate(steps):
        for value in (*step_reads(step), *step_writes(step)):
            last[value.buffer] = max(last.get(value.buffer, 0), i)
    slots: dict[int, int] = {}
    widths: list[int] = []
    free: list[int] = []
    for i, step in enumerate(steps):
        for value in step_writes(step):
            if value.buffer not in slots:
                width = program.widths[value.buffer]
                slot = next((s for s in free if widths[s] == width), None)
                if slot is None:
                    slot = len(widths)
                    widths.append(width)
                else:
                    free.remove(slot)
                slots[value.buffer] = slot
        done = {v.buffer for v in (*step_reads(step), *step_writes(step)) if last[v.buffer] == i}
        free += [slots[b] for b in sorted(done) if b in slots]
    return slots, tuple(widths)


_WRITES_HALVES = (AttentionStep, GatedStep, NormStep, ElementStep)


def _forms(
    steps: tuple[Step, ...], type_of: TypeOf, program: Program
) -> tuple[frozenset[int], frozenset[int]]:
    """Which buffers exist as halves (written so for quantized linears), which as floats."""
    halves: set[int] = set()
    floats: set[int] = {program.logits.buffer, program.head_input.buffer}
    writer: dict[int, Step] = {}
    for step in steps:
        for value in step_reads(step):
            whole = value.width == program.widths[value.buffer]
            direct = isinstance(step, LinearStep | GatedStep) and not step.norm and value == step.x
            as_half = direct and whole and isinstance(writer.get(value.buffer), _WRITES_HALVES)
            quantized = as_half and type_of(_first_weight(step)) not in _FLOATS
            (halves if quantized else floats).add(value.buffer)
        for value in step_writes(step):
            writer[value.buffer] = step
            if not isinstance(step, _WRITES_HALVES):
                floats.add(value.buffer)
    return frozenset(halves), frozenset(floats)


def _first_weight(step: Step) -> str:
    assert isinstance(step, LinearStep | GatedStep)
    return step.linears[0].weight
