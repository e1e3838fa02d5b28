"""Attention over pages of float32 keys and values.

A page holds PAGE_POSITIONS positions of every layer. Keys lie as tiles of 16 positions,
[tile][head_dim][16], so a lane is a position; values as [position][padded head_dim], so a lane is
a dimension. Positions are summed in ascending order page by page, whatever shares the pass.
"""

import numpy as np

from engine.backends.cpu_jit import as_f32, as_i64
from engine.backends.cpu_kernels import (
    FIRST_POSITION, PAGE_TABLE, float_argument, kernel,
)  # fmt: skip
from engine.backends.cpu_layouts import TILE_ROWS
from engine.backends.cpu_tiles import multiply_columns
from engine.backends.cpu_vectors import row_exponentials, row_maximum

PAGE_POSITIONS = 64
HEADS_AT_ONCE = 4
SUMS_FLOATS = HEADS_AT_ONCE * TILE_ROWS
TILE_BYTES = 4 * TILE_ROWS


def padded(count: int) -> int:
    """The next multiple of 16."""
    return -(-count // TILE_ROWS) * TILE_ROWS


def head_page_bytes(head_dim: int) -> int:
    """Bytes of one head's keys and values on a page."""
    return 4 * PAGE_POSITIONS * (head_dim + padded(head_dim))


@kernel
def append(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Write this layer's keys and values to the pages. Unit: a KV head of a token."""
    a, state = as_i64(instruction), as_i64(state_address)
    k, k_stride, v, v_stride, layer, n_heads, head_dim = (
        a[8],
        a[9],
        a[10],
        a[11],
        a[12],
        a[13],
        a[14],
    )
    pages = as_i64(np.uint64(state[PAGE_TABLE]))
    wide = (head_dim + 15) // 16 * 16
    head_bytes = 4 * PAGE_POSITIONS * (head_dim + wide)
    for unit in range(first, end):
        token, head = unit // n_heads, unit % n_heads
        position = state[FIRST_POSITION] + token
        slot = position % PAGE_POSITIONS
        base = pages[position // PAGE_POSITIONS] + layer + head * head_bytes
        key = as_f32(np.uint64(k + token * k_stride + 4 * head * head_dim))
        value = as_f32(np.uint64(v + token * v_stride + 4 * head * head_dim))
        keys = as_f32(np.uint64(base + slot // 16 * TILE_BYTES * head_dim + 4 * (slot % 16)))
        values = as_f32(np.uint64(base + 4 * PAGE_POSITIONS * head_dim + 4 * wide * slot))
        for i in range(head_dim):
            keys[i * TILE_ROWS] = key[i]
            values[i] = value[i]


@kernel
def attend(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Softmax attention of query heads over the pages. Unit: a query head of a token."""
    a, state = as_i64(instruction), as_i64(state_address)
    out, out_stride, q, q_stride, layer = a[8], a[9], a[10], a[11], a[12]
    n_heads, group, head_dim, window, sinks = a[13], a[14], a[15], a[16], a[17]
    scale, row_floats = np.float32(float_argument(a[18])), a[19]
    pages = as_i64(np.uint64(state[PAGE_TABLE]))
    wide = (head_dim + 15) // 16 * 16
    head_bytes = 4 * PAGE_POSITIONS * (head_dim + wide)
    sums, scores = as_f32(scratch), scratch + np.uint64(4 * SUMS_FLOATS)
    row_bytes = np.uint64(4 * row_floats)
    unit = first
    while unit < end:
        token, head = unit // n_heads, unit % n_heads
        kv_head = head // group
        n = min(HEADS_AT_ONCE, end - unit, (kv_head + 1) * group - head)
        unit += n
        position = state[FIRST_POSITION] + token
        oldest = max(0, position - window + 1)
        page0, last_page = oldest // PAGE_POSITIONS, position // PAGE_POSITIONS
        q0 = np.uint64(q + token * q_stride + 4 * head * head_dim)
        out0 = out + token * out_stride + 4 * head * head_dim
        step = np.uint64(4 * head_dim)
        n_keys = position - page0 * PAGE_POSITIONS + 1
        n_tiles = (n_keys + 15) // 16
        for tile in range(n_tiles):
            base = pages[page0 + tile // 4] + layer + kv_head * head_bytes
            keys = np.uint64(base + tile % 4 * TILE_BYTES * head_dim)
            if n == 4:
                multiply_columns(
                    keys,
                    TILE_BYTES,
                    head_dim,
                    (q0, q0 + step, q0 + step + step, q0 + step + step + step),
                    scratch,
                )
            elif n == 3:
                multiply_columns(
                    keys, TILE_BYTES, head_dim, (q0, q0 + step, q0 + step + step), scratch
                )
            elif n == 2:
                multiply_columns(keys, TILE_BYTES, head_dim, (q0, q0 + step), scratch)
            else:
                multiply_columns(keys, TILE_BYTES, head_dim, (q0,), scratch)
            for at in range(n):
                row = as_f32(scores + np.uint64(at) * row_bytes)
                for lane in range(TILE_ROWS):
                    row[tile * TILE_ROWS + lane] = sums[at * TILE_ROWS + lane]
        totals = as_f32(scores + np.uint64(HEADS_AT_ONCE) * row_bytes)
        for at in range(n):
            address = scores + np.uint64(at) * row_bytes
            row = as_f32(address)
            for i in range(oldest - page0 * PAGE_POSITIONS):
                row[i] = -np.inf
            for i in range(n_keys, n_tiles * TILE_ROWS):
                row[i] = -np.inf
            maximum = row_maximum(address, n_tiles * TILE_ROWS) * scale
            sink = np.float32(-np.inf)
            if sinks:
                sink = as_f32(np.uint64(sinks))[head + at]
                maximum = max(maximum, sink)
            total = row_exponentials(address, n_tiles * TILE_ROWS, scale, maximum)
            totals[at] = total + np.exp(sink - maximum)
        for tile in range(wide // TILE_ROWS):
            lanes = min(TILE_ROWS, head_dim - tile * TILE_ROWS)
            for page in range(page0, last_page + 1):
                base = pages[page] + layer + kv_head * head_bytes
                values = np.uint64(base + 4 * PAGE_POSITIONS * head_dim + TILE_BYTES * tile)
                done = (page - page0) * PAGE_POSITIONS
                count = min(PAGE_POSITIONS, n_keys - done)
                p0 = scores + np.uint64(4 * done)
                if n == 4:
                    multiply_columns(
                        values,
                        4 * wide,
                        count,
                        (
                            p0,
                            p0 + row_bytes,
                            p0 + row_bytes + row_bytes,
                            p0 + row_bytes + row_bytes + row_bytes,
                        ),
                        scratch,
                    )
                elif n == 3:
                    multiply_columns(
                        values,
                        4 * wide,
                        count,
                        (p0, p0 + row_bytes, p0 + row_bytes + row_bytes),
                        scratch,
                    )
                elif n == 2:
                    multiply_columns(values, 4 * wide, count, (p0, p0 + row_bytes), scratch)
                else:
                    multiply_columns(values, 4 * wide, count, (p0,), scratch)
                for at in range(n):
                    target = as_f32(np.uint64(out0 + 4 * (at * head_dim + tile * TILE_ROWS)))
                    inverse = np.float32(1) / totals[at]
                    for lane in range(lanes):
                        before = np.float32(0) if page == page0 else target[lane]
                        target[lane] = before + sums[at * TILE_ROWS + lane] * inverse
