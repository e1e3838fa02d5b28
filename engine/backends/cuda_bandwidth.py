"""The read ceiling of a GPU's memory, measured: what decoding is compared with."""

from typing import Any

from engine.backends.cuda_memory import DevicePool
from kernels.context import KernelContext
from kernels.read import BLOCKS_A_MULTIPROCESSOR, THREADS, read_words

_MOST_BYTES = 4 << 30
_WORD_BYTES = 16
_REPEATS = 5


def read_gb_per_s(context: KernelContext, memory: DevicePool, stream: Any) -> float:
    """Best of five passes over as much spare memory as there is, up to 4 GiB, in GB/s.

    Raises OutOfMemory where not even the results of the threads fit.
    """
    n_threads = BLOCKS_A_MULTIPROCESSOR * context.limits.n_multiprocessors * THREADS
    out = memory.array((n_threads,), "i32", "workspace")
    n_words = min(_MOST_BYTES, memory.available_bytes() // 2) // _WORD_BYTES
    words = memory.array((n_words, 4), "i32", "workspace")
    elapsed_ms = memory.cupy.cuda.get_elapsed_time

    def pass_ms() -> float:
        begin = stream.record()
        read_words(context, words, out)
        end = stream.record()
        end.synchronize()
        return float(elapsed_ms(begin, end))

    try:
        memory.zero(words)
        return round(words.size_bytes / min(pass_ms() for _ in range(_REPEATS)) / 1e6, 2)
    finally:
        stream.synchronize()
        memory.free(words.pointer)
        memory.free(out.pointer)
