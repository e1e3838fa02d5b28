"""Floating-point operations of a forward pass, counted from the program that really runs.

A matrix of shape [rows, cols] costs 2·rows·cols a token, a mixture of experts its router and top_k
experts, attention 4·n_heads·head_dim for each key a query sees (scores and weighted sum). Norms,
activations and RoPE are left out: under 1 % of a transformer's work.
"""

from functools import singledispatch

from engine.program import Attention, Linear, MixtureOfExperts, Op, Program


@singledispatch
def _matrix_flops(op: Op) -> int:
    return 0


@_matrix_flops.register
def _(op: Linear) -> int:
    return 2 * op.out.width * op.x.width


@_matrix_flops.register
def _(op: MixtureOfExperts) -> int:
    width = op.x.width
    expert = 2 * op.hidden * (2 * width + op.out.width)
    return 2 * op.n_experts * width + op.top_k * expert


def _visible_keys(first: int, count: int, window: int | None) -> int:
    """Keys seen in sum by queries at positions first … first + count - 1."""
    return sum(min(p + 1, window or p + 1) for p in range(first, first + count))


def _span_flops(program: Program, first: int, count: int, n_logits: int) -> int:
    attention = sum(
        4 * op.n_heads * op.head_dim * _visible_keys(first, count, op.window)
        for op in program.body
        if isinstance(op, Attention)
    )
    body = sum(_matrix_flops(op) for op in program.body)
    head = sum(_matrix_flops(op) for op in program.head)
    return count * body + attention + n_logits * head


def prefill_flops(program: Program, prompt_tokens: int) -> int:
    """Operations to prefill a prompt; logits are computed for its last position only."""
    return _span_flops(program, 0, prompt_tokens, 1)


def decode_flops(program: Program, prompt_tokens: int, completion_tokens: int) -> int:
    """Operations to decode after a prefill, which itself yields the first of these tokens."""
    steps = max(0, completion_tokens - 1)
    return _span_flops(program, prompt_tokens, steps, steps)
