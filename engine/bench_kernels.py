"""`haikugate-engine bench --kernels`: how fast each block type's CPU product reads its weights."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.backends.cpu import default_threads
from engine.backends.cpu_instructions import Instruction
from engine.backends.cpu_jit import address_of
from engine.backends.cpu_kernels import linear
from engine.backends.cpu_layouts import LAYOUTS, Layout
from engine.backends.cpu_threads import Team
from engine.backends.cpu_weights import aligned_zeros
from engine.bench import read_gb_per_s

COLUMNS = 4096
WEIGHT_BYTES = 64 << 20
_SCRATCH_BYTES = 1 << 16
_STATE_WORDS = 8


@dataclass(frozen=True)
class KernelSpeed:
    """One token's product with a matrix larger than the caches; GB/s of 1e9 bytes of blocks."""

    type: str
    weight_bytes: int
    gb_per_s: float
    best_gb_per_s: float
    gweights_per_s: float


def run(n_threads: int, repeats: int, *, as_json: bool) -> int:
    """Measure every type and print; the exit code."""
    n_threads = n_threads or default_threads()
    report = {
        "n_threads": n_threads,
        "repeats": repeats,
        "columns": COLUMNS,
        "read_ceiling_gb_per_s": read_gb_per_s(n_threads),
        "kernels": [asdict(speed) for speed in speeds(n_threads, repeats)],
    }
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print_table(report)
    return 0


def speeds(n_threads: int, repeats: int, weight_bytes: int = WEIGHT_BYTES) -> list[KernelSpeed]:
    """The speed of every block type, one after another."""
    return [_speed(layout, n_threads, repeats, weight_bytes) for layout in LAYOUTS.values()]


def _speed(layout: Layout, n_threads: int, repeats: int, weight_bytes: int) -> KernelSpeed:
    tile_bytes = layout.tile_bytes(COLUMNS)
    n_tiles = max(1, weight_bytes // tile_bytes)
    weights, out = aligned_zeros(n_tiles * tile_bytes), np.zeros(16 * n_tiles, np.float32)
    weights[:] = np.resize(np.arange(64, dtype=np.uint8), weights.size)
    x = np.zeros(4 * COLUMNS, np.uint8)  # float32, or int16 blocks, which are smaller
    row = Instruction(
        linear(layout.index),
        (
            address_of(weights), tile_bytes, COLUMNS // layout.block, address_of(x), x.nbytes,
            address_of(out), out.nbytes, out.size, 0, 0, 0,
        ),
        fixed=n_tiles,
    )  # fmt: skip
    table, state = np.array([row.words()], np.int64), np.zeros(_STATE_WORDS, np.int64)
    state[0] = 1
    team = Team(n_threads, _SCRATCH_BYTES, 1)
    try:
        seconds = [_timed(team, table, address_of(state)) for _ in range(repeats + 1)][1:]
    finally:
        team.close()
    return _summary(layout, weights.size, out.size * COLUMNS, seconds)


def _timed(team: Team, table: Any, state: int) -> float:
    begun = time.perf_counter()
    team.run(table, 0, 1, state)
    return time.perf_counter() - begun


def _summary(layout: Layout, n_bytes: int, n_weights: int, seconds: Sequence[float]) -> KernelSpeed:
    middle, best = statistics.median(seconds), min(seconds)
    return KernelSpeed(
        type=layout.type,
        weight_bytes=n_bytes,
        gb_per_s=round(n_bytes / middle / 1e9, 2),
        best_gb_per_s=round(n_bytes / best / 1e9, 2),
        gweights_per_s=round(n_weights / middle / 1e9, 2),
    )


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"One token's product on {report['n_threads']} threads"
    ceiling = f"measured memory read: {report['read_ceiling_gb_per_s']} GB/s"
    table = Table("type", "GB/s", "best", "Gweights/s", title=title, caption=ceiling)
    for kernel in report["kernels"]:
        names = ("type", "gb_per_s", "best_gb_per_s", "gweights_per_s")
        table.add_row(*(str(kernel[name]) for name in names))
    Console().print(table)
