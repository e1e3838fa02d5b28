"""The instruction table: what a row says, where a barrier must stand, where a run may pause.

An instruction is a row of int64 words: kernel address, barrier flag, units = min(limit, fixed +
per_token · tokens), then the kernel's arguments from word ARGUMENTS on, floats as float64 bits.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.backends.cpu_kernels import ARGUMENTS
from engine.backends.cpu_threads import ROW_WORDS
from engine.program import Value

UNLIMITED = 1 << 40
Region = tuple[object, int, int]


@dataclass
class Instruction:
    """One row of the table; `reads` and `writes` are (memory, first, end) regions."""

    kernel: Any
    arguments: tuple[float, ...]
    fixed: int = 0
    per_token: int = 0
    limit: int = UNLIMITED
    reads: list[Region] = field(default_factory=list)
    writes: list[Region] = field(default_factory=list)
    weight_bytes: int = 0
    multiplications: int = 0
    barrier: bool = False

    def words(self) -> list[int]:
        """The row."""
        head = [self.kernel.address, int(self.barrier), self.fixed, self.per_token, self.limit]
        bits = [_word(argument) for argument in self.arguments]
        row = head + [0] * (ARGUMENTS - len(head)) + bits
        return row + [0] * (ROW_WORDS - len(row))


def _word(argument: float) -> int:
    if isinstance(argument, float):
        return int(struct.unpack("<q", struct.pack("<d", argument))[0])
    return int(argument)


def region_of(value: Value) -> Region:
    """The columns of an activation buffer that a value covers."""
    return (value.buffer, value.offset, value.offset + value.width)


def overlap(one: Sequence[Region], other: Sequence[Region]) -> bool:
    """Whether any region of one shares memory with any of the other."""
    return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in one for b in other)


def place_barriers(instructions: Sequence[Instruction]) -> None:
    """Mark each instruction that depends on another since the last barrier."""
    reads: list[Region] = []
    writes: list[Region] = []
    for one in instructions:
        one.barrier = (
            overlap(one.reads, writes) or overlap(one.writes, writes) or overlap(one.writes, reads)
        )
        if one.barrier:
            reads, writes = [], []
        reads = reads + one.reads
        writes = writes + one.writes


def segments(
    instructions: Sequence[Instruction], limit: int, cost: Callable[[Instruction], int]
) -> list[tuple[int, int]]:
    """Runs of instructions [first, end) whose summed cost stays under the limit."""
    runs, first, total = [], 0, 0
    for index, instruction in enumerate(instructions):
        if index > first and total + cost(instruction) > limit:
            runs.append((first, index))
            first, total = index, 0
        total += cost(instruction)
    runs.append((first, len(instructions)))
    return runs
