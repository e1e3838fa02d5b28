"""Mixture of experts: choose, group tokens by expert, multiply, combine.

A slot is (token, rank); its number is token · top_k + rank. `choose` fills, for every expert that
any token chose, the list of its slots, so each expert's weights are read once a chunk.
Memory of the routing, int64 words: [n_active][expert of active i …][start of list i …, end]
[slots …]; weights: float32 per slot.
"""

from functools import cache

import numpy as np
from numba import carray, njit

from engine.backends.cpu_jit import as_f32, as_i64
from engine.backends.cpu_kernels import N_TOKENS, Kernel, kernel
from engine.backends.cpu_layouts import TILE_ROWS
from engine.backends.cpu_tiles import multiply_tile

part = njit(nogil=True, error_model="numpy")


def routing_words(n_experts: int, n_slots: int) -> int:
    """Words of the routing memory: counts, lists, and each slot's expert."""
    return 1 + n_experts + n_experts + 1 + 2 * n_slots


@part
def _best_expert(row, n_experts, taken, n_taken):  # type: ignore[no-untyped-def]
    best = -1
    for expert in range(n_experts):
        free = True
        for earlier in range(n_taken):
            free = free and taken[earlier] != expert
        if free and (best < 0 or row[expert] > row[best]):
            best = expert
    return best


@part
def _choose_for_token(row, n_experts, top_k, slot, routing, chosen, weights):  # type: ignore[no-untyped-def]
    taken = routing[chosen + slot : chosen + slot + top_k]
    for rank in range(top_k):
        taken[rank] = _best_expert(row, n_experts, taken, rank)
    total = np.float32(0)
    for rank in range(top_k):
        weights[slot + rank] = np.exp(row[taken[rank]] - row[taken[0]])
        total += weights[slot + rank]
    for rank in range(top_k):
        weights[slot + rank] /= total


@part
def _list_slots(n_experts, n_slots, routing, chosen):  # type: ignore[no-untyped-def]
    """Group slots by expert, ascending; see the module's routing memory."""
    starts, slots = 1 + n_experts, 2 + n_experts + n_experts
    n_active = filled = 0
    for expert in range(n_experts):
        start = filled
        for slot in range(n_slots):
            if routing[chosen + slot] == expert:
                routing[slots + filled] = slot
                filled += 1
        if filled > start:
            routing[1 + n_active] = expert
            routing[starts + n_active] = start
            n_active += 1
    routing[starts + n_active] = filled
    routing[0] = n_active


@kernel
def choose(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """The top_k experts of each token, softmax over their router logits. Unit: everything."""
    a = as_i64(instruction)
    logits, stride, n_experts, top_k = a[8], a[9], a[10], a[11]
    weights = as_f32(np.uint64(a[13]))
    routing = carray(as_i64(np.uint64(a[12])), 2 + 2 * n_experts + 2 * a[14])
    n_tokens = as_i64(state_address)[N_TOKENS]
    chosen = 1 + n_experts + n_experts + 1 + a[14]
    for token in range(n_tokens):
        row = as_f32(np.uint64(logits + token * stride))
        _choose_for_token(row, n_experts, top_k, token * top_k, routing, chosen, weights)
    _list_slots(n_experts, n_tokens * top_k, routing, chosen)


@cache
def expert_linear(kind: int) -> Kernel:
    """x[slot // share] · weight[expert]ᵀ + bias[expert]. Unit: a tile of an active expert."""

    @kernel
    def run(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
        a = as_i64(instruction)
        weight, tile_bytes, n_blocks, x, x_stride = a[8], a[9], a[10], a[11], a[12]
        out, out_stride, n_rows, bias = a[13], a[14], a[15], as_f32(np.uint64(a[16]))
        routing, n_experts, share, n_tiles = as_i64(np.uint64(a[17])), a[18], a[19], a[20]
        starts_at = 1 + n_experts
        slots_at = starts_at + n_experts + 1
        sums = as_f32(scratch)
        for unit in range(first, end):
            active, tile = unit // n_tiles, unit % n_tiles
            if active >= routing[0]:
                continue
            expert = routing[1 + active]
            w = np.uint64(weight + (expert * n_tiles + tile) * tile_bytes)
            row = tile * TILE_ROWS
            lanes = min(TILE_ROWS, n_rows - row)
            for at in range(routing[starts_at + active], routing[starts_at + active + 1]):
                slot = routing[slots_at + at]
                x0 = np.uint64(x + slot // share * x_stride)
                multiply_tile(kind, w, n_blocks, (x0,), scratch)
                target = as_f32(np.uint64(out + slot * out_stride + 4 * row))
                for lane in range(lanes):
                    target[lane] = sums[lane] + bias[expert * n_rows + row + lane]

    return run


@kernel
def gather(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """out[token] = Σ over ranks of weight · y[slot], in order of rank. Unit: a token."""
    a = as_i64(instruction)
    out, out_stride, y, y_stride, n, top_k = a[8], a[9], a[10], a[11], a[12], a[13]
    weights = as_f32(np.uint64(a[14]))
    for token in range(first, end):
        target = as_f32(np.uint64(out + token * out_stride))
        for rank in range(top_k):
            slot = token * top_k + rank
            row = as_f32(np.uint64(y + slot * y_stride))
            weight = weights[slot]
            for i in range(n):
                before = np.float32(0) if rank == 0 else target[i]
                target[i] = before + weight * row[i]
