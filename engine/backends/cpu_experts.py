"""Mixture of experts: choose, group tokens by expert, multiply, combine.

A slot is (token, rank); its number is token · top_k + rank. `choose` fills, for every expert that
any token chose, the list of its slots, so each expert's weights are read once a chunk.
Memory of the routing, int64 words: [n_active][expert of active i …][start of list i …, end]
[slots …]; weights: float32 per slot.
"""

from functools import cache

import numpy as np

from engine.backends.cpu_jit import as_f32, as_i64
from engine.backends.cpu_kernels import N_TOKENS, Kernel, kernel
from engine.backends.cpu_layouts import TILE_ROWS
from engine.backends.cpu_tiles import multiply_tile


def routing_words(n_experts: int, n_slots: int) -> int:
    """Words of the routing memory: counts, lists, and each slot's expert."""
    return 1 + n_experts + n_experts + 1 + 2 * n_slots


@kernel
def choose(instruction, first, end, state_address, scratch):  # type: ignore[no-untyped-def]
    """The top_k experts of each token by router logit, softmax over the chosen. Unit: everything."""
    a = as_i64(instruction)
    logits, stride, n_experts, top_k = a[8], a[9], a[10], a[11]
    routing, weights = as_i64(np.uint64(a[12])), as_f32(np.uint64(a[13]))
    n_slots = as_i64(state_address)[N_TOKENS] * top_k
    experts_at, starts_at = 1, 1 + n_experts
    slots_at = starts_at + n_experts + 1
    chosen_at = slots_at + a[14]
    for token in range(as_i64(state_address)[N_TOKENS]):
        row = as_f32(np.uint64(logits + token * stride))
        slot = token * top_k
        for rank in range(top_k):
            best = -1
            for expert in range(n_experts):
                taken = False
                for earlier in range(rank):
                    taken = taken or routing[chosen_at + slot + earlier] == expert
                if not taken and (best < 0 or row[expert] > row[best]):
                    best = expert
            routing[chosen_at + slot + rank] = best
        top = row[routing[chosen_at + slot]]
        total = np.float32(0)
        for rank in range(top_k):
            weights[slot + rank] = np.exp(row[routing[chosen_at + slot + rank]] - top)
            total += weights[slot + rank]
        for rank in range(top_k):
            weights[slot + rank] /= total
    n_active = 0
    filled = 0
    for expert in range(n_experts):
        start = filled
        for slot in range(n_slots):
            if routing[chosen_at + slot] == expert:
                routing[slots_at + filled] = slot
                filled += 1
        if filled > start:
            routing[experts_at + n_active] = expert
            routing[starts_at + n_active] = start
            n_active += 1
    routing[starts_at + n_active] = filled
    routing[0] = n_active


@cache
def expert_linear(kind: int) -> Kernel:
    """out[slot] = x[slot // share] · weight[expert]ᵀ + bias[expert]. Unit: (active expert, tile)."""

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
