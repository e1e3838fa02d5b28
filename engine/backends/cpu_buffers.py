"""Buffer sharing: values whose lives do not overlap get the same activation memory."""

from dataclasses import fields, replace
from typing import Any

from engine.program import Op, Program, Value


def values(op: Op) -> dict[str, Value]:
    """The operation's values by field name."""
    found = {field.name: getattr(op, field.name) for field in fields(op)}
    return {name: value for name, value in found.items() if isinstance(value, Value)}


def _last_uses(program: Program) -> dict[int, int]:
    ops = program.body + program.head
    last = {value.buffer: index for index, op in enumerate(ops) for value in values(op).values()}
    for kept in (program.head_input, program.logits):
        last[kept.buffer] = len(ops)
    return last


def share_buffers(program: Program) -> Program:
    """The same program over as few buffers as their lives allow, each of one width."""
    last, widths = _last_uses(program), list[int]()
    free: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    kept_apart = {program.logits.buffer, program.head_input.buffer}
    ops: list[Op] = []
    for index, op in enumerate(program.body + program.head):
        for buffer in sorted({value.buffer for value in values(op).values()} - places.keys()):
            width = program.widths[buffer]
            available = [] if buffer in kept_apart else free.get(width, [])
            places[buffer] = available.pop() if available else len(widths)
            if places[buffer] == len(widths):
                widths.append(width)
        renamed: dict[str, Any] = {
            name: replace(value, buffer=places[value.buffer]) for name, value in values(op).items()
        }
        ops.append(replace(op, **renamed))
        for buffer in {value.buffer for value in values(op).values()}:
            if last[buffer] == index:
                free.setdefault(program.widths[buffer], []).append(places[buffer])
    return replace(
        program,
        body=tuple(ops[: len(program.body)]),
        head=tuple(ops[len(program.body) :]),
        widths=tuple(widths),
        head_input=replace(program.head_input, buffer=places[program.head_input.buffer]),
        logits=replace(program.logits, buffer=places[program.logits.buffer]),
    )


_VECTOR_FIELDS = ("bias", "sinks", "router_bias", "gate_bias", "up_bias", "down_bias")
_NORM_FIELDS = ("weight", "bias")


def tensor_names(program: Program) -> tuple[list[str], set[str]]:
    """(all tensors in order of first use, those that are vectors)."""
    names: dict[str, None] = {}
    vectors: set[str] = set()
    for op in program.body + program.head:
        is_norm = hasattr(op, "eps")
        for field in fields(op):
            name = getattr(op, field.name)
            if isinstance(name, str) and field.name not in ("kind", "pairs"):
                names[name] = None
                if field.name in (_NORM_FIELDS if is_norm else _VECTOR_FIELDS):
                    vectors.add(name)
    return list(names), vectors
