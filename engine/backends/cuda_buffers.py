"""Activation buffers of a plan for some number of rows, and the scratch beside them."""

from dataclasses import dataclass, field
from typing import Any

from engine.backends.cuda_memory import DevicePool
from engine.backends.cuda_plan import ExpertsStep, Plan, step_reads
from engine.program import Value
from kernels.arrays import ITEM_BYTES, DeviceArray
from kernels.moe import Routing


@dataclass
class Buffers:
    """Float and half activations [n_rows, width] of the buffers that exist in memory.

    `only_floats` keeps every buffer in float32, as decoding wants them. `logits` are their owner's.
    """

    plan: Plan
    memory: DevicePool
    n_rows: int
    only_floats: bool = False
    logits: DeviceArray | None = None
    _floats: dict[int, DeviceArray] = field(default_factory=dict)
    _halves: dict[int, DeviceArray] = field(default_factory=dict)
    _scratch: dict[str, DeviceArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocate the slots; the logits are another object's."""
        for buffer, slot in self.plan.slots.items():
            if buffer == self.plan.logits.buffer:
                continue
            width = self.plan.slot_widths[slot]
            is_float = self.only_floats or buffer in self.plan.floats
            if is_float and slot not in self._floats:
                self._floats[slot] = self._array((self.n_rows, width), "f32")
            is_half = not self.only_floats and buffer in self.plan.halves
            if is_half and slot not in self._halves:
                self._halves[slot] = self._array((self.n_rows, width), "f16")

    def _array(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return self.memory.array(shape, dtype, "workspace")

    def floats(self, value: Value, rows: int) -> DeviceArray:
        """The first `rows` rows of a value in float32."""
        if self.logits is not None and value.buffer == self.plan.logits.buffer:
            return self.logits.rows(0, rows)
        slot = self._floats[self.plan.slots[value.buffer]]
        return slot.rows(0, rows).columns(value.offset, value.offset + value.width)

    def halves(self, value: Value, rows: int) -> DeviceArray | None:
        """The first `rows` rows of a whole buffer as halves, None if it has none."""
        if self.only_floats or value.buffer not in self.plan.halves:
            return None
        return self._halves[self.plan.slots[value.buffer]].rows(0, rows)

    def outputs(self, value: Value, rows: int) -> tuple[DeviceArray | None, DeviceArray | None]:
        """(float, half) forms of a value that some step reads."""
        is_float = self.only_floats or value.buffer in self.plan.floats
        full = self.floats(value, rows) if is_float else None
        return full, self.halves(value, rows)

    def scratch(self, name: str, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A named array of at most the size it was first asked for with `n_rows` rows."""
        wanted = DeviceArray(0, dtype, shape)
        held = self._scratch[name]
        if wanted.size_bytes > held.size_bytes:
            raise ValueError(f"scratch {name}: {wanted.size_bytes} of {held.size_bytes} bytes")
        return DeviceArray(held.pointer, dtype, shape)

    def whole(self, name: str) -> DeviceArray:
        """All bytes of a named array, u8[n]."""
        return self._scratch[name]

    def reserve(self, name: str, size_bytes: int) -> None:
        """Make room for a scratch array."""
        held = self._scratch.get(name)
        if held is None or held.size_bytes < size_bytes:
            if held is not None:
                self.memory.free(held.pointer)
            self._scratch[name] = self._array((size_bytes,), "u8")

    def routing(self, n_experts: int, chosen: int, rows: int) -> Routing:
        """The routing arrays of a mixture of experts."""
        n = rows * chosen
        return Routing(
            self.scratch("experts", (n,), "i32"), self.scratch("routing", (n,), "f32"),
            self.scratch("entries", (n,), "i32"),
            self.scratch("first_row", (n_experts + 1,), "i32"), n_experts, chosen,
        )  # fmt: skip

    def reserve_for_chunks(self) -> None:
        """Scratch that the steps of the plan need for `n_rows` rows at a time."""
        rows = self.n_rows
        for step in (*self.plan.body, *self.plan.head):
            width = max((v.width for v in step_reads(step)), default=1)
            self.reserve("input_half", rows * width * ITEM_BYTES["f16"])
            self.reserve("input_float", rows * width * ITEM_BYTES["f32"])
            op: Any = getattr(step, "op", None)
            if isinstance(step, ExpertsStep):
                self._reserve_experts(step)
            elif hasattr(op, "head_dim"):
                self.reserve("q", rows * op.q.width * ITEM_BYTES["f16"])

    def _reserve_experts(self, step: ExpertsStep) -> None:
        op, rows = step.op, self.n_rows
        entries = rows * op.top_k
        for name, n_items, dtype in (
            ("experts", entries, "i32"),
            ("routing", entries, "f32"),
            ("entries", entries, "i32"),
            ("first_row", op.n_experts + 1, "i32"),
            ("router", rows * op.n_experts, "f32"),
            ("hidden", entries * op.hidden, "f32" if step.exact else "f16"),
            ("expert_out", entries * op.out.width, "f32"),
        ):
            self.reserve(name, n_items * ITEM_BYTES[dtype])
