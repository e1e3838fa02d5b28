"""How fast this machine's memory can be read, measured: the ceiling of any engine's token rate."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

BUFFER_BYTES = 128 << 20


def memory_bandwidth_bytes_per_s(duration_s: float = 1.0) -> float:
    """Bytes that all usable cores read from memory each second, best of the run.

    The buffer is far larger than a cache. It is a floor of what the memory can do: judges allow a
    factor above it.
    """
    import numpy as np

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parts = np.array_split(np.ones(BUFFER_BYTES // 8, dtype=np.int64), threads)
    deadline, best = time.monotonic() + duration_s, 0.0
    with ThreadPoolExecutor(threads) as pool:
        while time.monotonic() < deadline:
            started = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            best = max(best, BUFFER_BYTES / (time.perf_counter() - started))
    return best
