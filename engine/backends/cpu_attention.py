"""Attention over pages of float32 keys and values.

A page holds PAGE_POSITIONS positions of every layer. Keys lie as tiles of 16 positions,
[tile][head_dim][16], so a lane is a position; values as [position][padded head_dim], so a lane is
a dimension. Positions are summed in ascending order page by page, whatever shares the pass.
"""

import numpy as np
from numba import njit

from engine.backends.cpu_jit import as_f32, as_i64
from engine.backends.cpu_kernels import FIRST_POSITION, PAGE_TABLE, float_argument, kernel
from engine.backends.cpu_layouts import TILE_ROWS
from engine.backends.cpu_tiles import multiply_columns
from engine.backends.cpu_vectors import row_exponentials, row_maximum

part = njit(nogil=True, error_model="numpy")

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


@part
def _multiply(w, stride, n_columns, x0, step, n, y):  # type: ignore[no-untyped-def]
    """multiply_columns for 1 … 4 rows of x, `step` bytes apart."""
    x1, x2 = x0 + step, x0 + step + step
    if n == 4:
        multiply_columns(w, stride, n_columns, (x0, x1, x2, x2 + step), y)
    elif n == 3:
        multiply_columns(w, stride, n_columns, (x0, x1, x2), y)
    elif n == 2:
        multiply_columns(w, stride, n_columns, (x0, x1), y)
    else:
        multiply_columns(w, stride, n_columns, (x0,), y)


@part
def _score(keys, head_dim, q0, n, tile, scores, row_bytes, scratch):  # type: ignore[no-untyped-def]
    """scores[head][16 positions of a tile] = q · k."""
    _multiply(keys, TILE_BYTES, head_dim, q0, np.uint64(4 * head_dim), n, scratch)
    sums = as_f32(scratch)
    for at in range(n):
        row = as_f32(scores + np.uint64(at) * row_bytes)
        for lane in range(TILE_ROWS):
            row[tile * TILE_ROWS + lane] = sums[at * TILE_ROWS + lane]


@part
def _softmax(address, n_masked, n_keys, n_padded, scale, sink):  # type: ignore[no-untyped-def]
    """exp(score·scale − maximum) in place, masked positions 0; returns the denominator."""
    row = as_f32(address)
    for i in range(n_masked):
        row[i] = -np.inf
    for i in range(n_keys, n_padded):
        row[i] = -np.inf
    maximum = max(row_maximum(address, n_padded) * scale, sink)
    total = row_exponentials(address, n_padded, scale, maximum)
    return total + np.exp(sink - maximum)


@part
def _add_values(out, head_dim, tile, n, is_first, totals, scratch):  # type: ignore[no-untyped-def]
    """out[head][16 dimensions of a tile] (+)= the sums of one page, over the denominator."""
    sums = as_f32(scratch)
    lanes = min(TILE_ROWS, head_dim - tile * TILE_ROWS)
    for at in range(n):
        target = as_f32(np.uint64(out + 4 * (at * head_dim + tile * TILE_ROWS)))
        inverse = np.float32(1) / totals[at]
        for lane in range(lanes):
            before = np.float32(0) if is_first else target[lane]
            target[lane] = before + sums[at * TILE_ROWS + lane] * inverse


@part
def _attend_heads(a, state, token, head, n, scratch):  # type: ignore[no-untyped-def]
    """`n` query heads of one token that share their keys and values."""
    layer, group, head_dim, sinks = a[12], a[14], a[15], a[17]
    scale, row_bytes = np.float32(float_argument(a[18])), np.uint64(4 * a[19])
    pages = as_i64(np.uint64(state[PAGE_TABLE]))
    wide = (head_dim + 15) // 16 * 16
    within = layer + head // group * 4 * PAGE_POSITIONS * (head_dim + wide)
    position = state[FIRST_POSITION] + token
    oldest = max(0, position - a[16] + 1)
    page0 = oldest // PAGE_POSITIONS
    n_keys = position - page0 * PAGE_POSITIONS + 1
    n_tiles = (n_keys + 15) // 16
    q0 = np.uint64(a[10] + token * a[11] + 4 * head * head_dim)
    out = a[8] + token * a[9] + 4 * head * head_dim
    scores = scratch + np.uint64(4 * SUMS_FLOATS)
    for tile in range(n_tiles):
        keys = pages[page0 + tile // 4] + within + tile % 4 * TILE_BYTES * head_dim
        _score(np.uint64(keys), head_dim, q0, n, tile, scores, row_bytes, scratch)
    totals = as_f32(scores + np.uint64(HEADS_AT_ONCE) * row_bytes)
    for at in range(n):
        sink = as_f32(np.uint64(sinks))[head + at] if sinks else np.float32(-np.inf)
        row = scores + np.uint64(at) * row_bytes
        n_masked = oldest - page0 * PAGE_POSITIONS
        totals[at] = _softmax(row, n_masked, n_keys, n_tiles * TILE_ROWS, scale, sink)
    for tile in range(wide // TILE_ROWS):
        for page in range(page0, position // PAGE_POSITIONS + 1):
            done = (page - page0) * PAGE_POSITIONS
            values = pages[page] + within + 4 * PAGE_POSITIONS * head_dim + TILE_BYTES * tile
            count, p0 = min(PAGE_POSITIONS, n_keys - done), scores + np.uint64(4 * done)
            _multiply(np.uint64(values), 4 * wide, count, p0, row_bytes, n, scratch)
            _add_values(out, head_dim, tile, n, page == page0, totals, scratch)


@kernel
def attend(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """Softmax attention of query heads over the pages. Unit: a query head of a token."""
    a, state = as_i64(instruction), as_i64(state_address)
    n_heads, group = a[13], a[14]
    unit = first
    while unit < end:
        token, head = unit // n_heads, unit % n_heads
        n = min(HEADS_AT_ONCE, end - unit, (head // group + 1) * group - head)
        _attend_heads(a, state, token, head, n, scratch)
        unit += n
