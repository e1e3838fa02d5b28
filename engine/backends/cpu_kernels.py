"""The kernels of the instruction table, except attention and experts: one per kind of operation.

Every kernel gets (instruction address, first unit, end unit, state address, scratch address). The
instruction is a row of int64 words, its arguments from word ARGUMENTS on (see cpu_instructions for
their names); the state tells which tokens run. What a unit is stands in each docstring.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.extending import intrinsic

from engine.backends.cpu_jit import KERNEL, as_f32, as_i64
from engine.backends.cpu_layouts import BY_INDEX, TILE_ROWS
from engine.backends.cpu_tiles import multiply_tile, unpack_block
from engine.backends.cpu_vectors import (
    elementwise,
    quantize_block,
    row_squares,
)  # fmt: skip

ARGUMENTS = 8
N_TOKENS, FIRST_POSITION, PAGE_TABLE, TOKEN_IDS = range(4)
"""Words of the state: tokens in this run, position of the first, addresses of int64 arrays."""

Kernel = Any
"""A numba CFunc; its `.address` goes into the instruction."""

kernel: Callable[[Callable[..., None]], Kernel] = cfunc(KERNEL, cache=True, error_model="numpy")


@intrinsic
def float_argument(typing: Any, word):  # type: ignore[no-untyped-def]
    """The float64 whose bits an instruction's word holds."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.bitcast(arguments[0], context.get_value_type(types.float64))

    return types.float64(types.int64), generate


@cache
def embed(kind: int, by_position: bool) -> Kernel:
    """Write (or add) a table row: a token's embedding, or its position. Unit: a token."""
    block = BY_INDEX[kind].block
    block_bytes = BY_INDEX[kind].block_bytes * TILE_ROWS

    @kernel
    def run(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
        a, state = as_i64(instruction), as_i64(state_address)
        table, tile_bytes, n_blocks, out, stride = a[8], a[9], a[10], a[11], a[12]
        ids, values = as_i64(np.uint64(state[TOKEN_IDS])), as_f32(scratch)
        for token in range(first, end):
            row = state[FIRST_POSITION] + token if by_position else ids[token]
            target = as_f32(np.uint64(out + token * stride))
            tile = table + (row // TILE_ROWS) * tile_bytes
            lane = row % TILE_ROWS
            for at in range(n_blocks):
                unpack_block(kind, np.uint64(tile + at * block_bytes), scratch)
                for element in range(block):
                    value = values[element * TILE_ROWS + lane]
                    column = at * block + element
                    target[column] = target[column] + value if by_position else value

    return run


@kernel
def rms_norm(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Write x / sqrt(mean(x²) + eps) · weight. Unit: a token."""
    a = as_i64(instruction)
    out, out_stride, x, x_stride, n, weight = a[8], a[9], a[10], a[11], a[12], a[13]
    eps, whole = np.float32(float_argument(a[15])), a[12] // 8 * 8
    w = as_f32(np.uint64(weight))
    for token in range(first, end):
        row, target = (
            as_f32(np.uint64(x + token * x_stride)),
            as_f32(np.uint64(out + token * out_stride)),
        )
        total = row_squares(np.uint64(x + token * x_stride), whole, np.float32(0))
        for i in range(whole, n):
            total += row[i] * row[i]
        inverse = np.float32(1) / np.sqrt(total / np.float32(n) + eps)
        for i in range(n):
            target[i] = row[i] * inverse * w[i]


@kernel
def layer_norm(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Write (x − mean) / sqrt(var + eps) · weight + bias. Unit: a token."""
    a = as_i64(instruction)
    out, out_stride, x, x_stride, n, weight, bias = a[8], a[9], a[10], a[11], a[12], a[13], a[14]
    eps, whole = np.float32(float_argument(a[15])), a[12] // 8 * 8
    w, shift = as_f32(np.uint64(weight)), as_f32(np.uint64(bias))
    for token in range(first, end):
        row, target = (
            as_f32(np.uint64(x + token * x_stride)),
            as_f32(np.uint64(out + token * out_stride)),
        )
        total = 0.0
        for i in range(n):
            total += row[i]
        mean = np.float32(total / n)
        squares = row_squares(np.uint64(x + token * x_stride), whole, mean)
        for i in range(whole, n):
            squares += (row[i] - mean) * (row[i] - mean)
        inverse = np.float32(1) / np.sqrt(squares / np.float32(n) + eps)
        for i in range(n):
            target[i] = (row[i] - mean) * inverse * w[i] + shift[i]


@kernel
def quantize(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Write x as int16 blocks of 32. Unit: at most 8 blocks of a token."""
    a = as_i64(instruction)
    out, out_stride, x, x_stride, n_blocks, per_token = a[8], a[9], a[10], a[11], a[12], a[13]
    for unit in range(first, end):
        token = unit // per_token
        start = unit % per_token * 8
        for at in range(start, min(start + 8, n_blocks)):
            quantize_block(
                np.uint64(x + token * x_stride + 128 * at),
                np.uint64(out + token * out_stride + 80 * at),
            )


@njit(nogil=True, error_model="numpy")
def write_rows(sums, at, out, bias, residual, row, lanes):  # type: ignore[no-untyped-def]
    """Write row `at` of a tile's sums to out[row:], plus bias and residual where given (not 0)."""
    values = as_f32(sums + np.uint64(4 * TILE_ROWS * at))
    target = as_f32(np.uint64(out + 4 * row))
    if bias:
        biases = as_f32(np.uint64(bias + 4 * row))
        for lane in range(lanes):
            values[lane] += biases[lane]
    if residual:
        other = as_f32(np.uint64(residual + 4 * row))
        for lane in range(lanes):
            values[lane] += other[lane]
    for lane in range(lanes):
        target[lane] = values[lane]


@cache
def linear(kind: int) -> Kernel:
    """Write x · weightᵀ (+ bias) (+ residual). Unit: a tile of 16 rows, for all tokens."""

    @kernel
    def run(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
        a = as_i64(instruction)
        n = as_i64(state_address)[N_TOKENS]
        weight, tile_bytes, n_blocks, x, x_stride = a[8], a[9], a[10], a[11], a[12]
        out, out_stride, n_rows, bias, residual, residual_stride = (
            a[13],
            a[14],
            a[15],
            a[16],
            a[17],
            a[18],
        )
        for tile in range(first, end):
            w = np.uint64(weight + tile * tile_bytes)
            row = tile * TILE_ROWS
            lanes = min(TILE_ROWS, n_rows - row)
            token = 0
            while token < n:
                x0 = np.uint64(x + token * x_stride)
                step = 4 if token + 4 <= n else 1
                if step == 4:
                    s = np.uint64(x_stride)
                    multiply_tile(
                        kind, w, n_blocks,
                        (x0, x0 + s, x0 + s + s, x0 + s + s + s), scratch,
                    )  # fmt: skip
                else:
                    multiply_tile(kind, w, n_blocks, (x0,), scratch)
                for at in range(step):
                    y, other = token + at, residual + (token + at) * residual_stride
                    target = out + y * out_stride
                    if not residual:
                        other = 0
                    write_rows(scratch, at, target, bias, other, row, lanes)
                token += step

    return run


@kernel
def rope_table(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Write cos and sin of position · frequency, the angle rounded to float32. Unit: a token."""
    a, state = as_i64(instruction), as_i64(state_address)
    out, out_stride, frequencies, n = a[8], a[9], as_f32(np.uint64(a[10])), a[11]
    magnitude = float_argument(a[12])
    for token in range(first, end):
        target = as_f32(np.uint64(out + token * out_stride))
        position = np.float32(state[FIRST_POSITION] + token)
        for i in range(n):
            angle = float(position * frequencies[i])
            target[i] = math.cos(angle) * magnitude
            target[n + i] = math.sin(angle) * magnitude


@kernel
def rope(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Rotate every head of x in place, partners `partner` apart. Unit: a token."""
    a = as_i64(instruction)
    x, x_stride, n_heads, head_dim, table, table_stride = a[8], a[9], a[10], a[11], a[12], a[13]
    n, pair_stride, partner = a[14], a[15], a[16]
    for token in range(first, end):
        angles = as_f32(np.uint64(table + token * table_stride))
        for head in range(n_heads):
            row = as_f32(np.uint64(x + token * x_stride + 4 * head * head_dim))
            for i in range(n):
                one, two = row[i * pair_stride], row[i * pair_stride + partner]
                row[i * pair_stride] = one * angles[i] - two * angles[n + i]
                row[i * pair_stride + partner] = two * angles[i] + one * angles[n + i]


@cache
def combine(kind: int) -> Kernel:
    """Write f(x, y) elementwise, f of cpu_vectors.ELEMENTWISE. Unit: a token."""

    @kernel
    def run(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
        a = as_i64(instruction)
        out, out_stride, x, x_stride, y, y_stride, n = a[8], a[9], a[10], a[11], a[12], a[13], a[14]
        whole, left = n // 8 * 8, n % 8
        rest = as_f32(scratch)
        for token in range(first, end):
            x0, y0 = np.uint64(x + token * x_stride), np.uint64(y + token * y_stride)
            out0 = np.uint64(out + token * out_stride)
            elementwise(kind, x0, y0, out0, whole)
            if left:
                one, two, target = as_f32(x0), as_f32(y0), as_f32(out0)
                for i in range(left):
                    rest[i] = one[whole + i]
                    rest[8 + i] = two[whole + i]
                elementwise(kind, scratch, scratch + np.uint64(32), scratch + np.uint64(64), 8)
                for i in range(left):
                    target[whole + i] = rest[16 + i]

    return run
