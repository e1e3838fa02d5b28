"""Prints achieved GB/s and TFLOP/s of the linears at the shapes of full-size models."""

import numpy as np

from engine.backends.cuda_device import open_device
from kernels.arrays import DeviceArray
from kernels.context import KernelContext
from kernels.gemm import GemmOutput, gemm
from kernels.gemv import Gemv, NormInput, Segment, choose_tuning, preferred_tile_rows
from kernels.matrix import PackedMatrix, matrix_bytes
from tests.integration.gpu.arrays import Arena

SHAPES = [
    ("Q5_0", 1152, 896), ("Q5_0", 9728, 896), ("Q4_K", 896, 4864), ("Q8_0", 151936, 896),
    ("Q5_K", 9216, 3072), ("Q4_K", 3072, 3072), ("Q4_K", 16384, 3072), ("Q6_K", 3072, 8192),
    ("Q6_K", 32064, 3072), ("Q8_0", 5120, 2880), ("Q8_0", 2880, 4096), ("Q8_0", 201088, 2880),
    ("MXFP4", 23040, 2880),
]  # fmt: skip


def microseconds(stream, work, repeats: int) -> float:  # type: ignore[no-untyped-def]
    import cupy

    with stream:
        stream.begin_capture()
        work()
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream)
        times = []
        for _ in range(5):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            for _ in range(4):
                graph.launch(stream)
            end.record(stream)
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(begin, end) * 1e3 / 4 / repeats)
    return sorted(times)[2]


class Timer:
    """Times one shape's GEMV (weights rotating through 600 MB) and GEMM (2,048 tokens)."""

    def __init__(self) -> None:
        import cupy

        self.context = KernelContext(open_device("cuda:0").limits)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.context.stream = self.stream.ptr
        self.arena = Arena()
        self.pool, array = self.arena.poisoned((700 << 20,), "u1")
        array.fill(3)

    def gemv(self, type_name: str, rows: int, k: int) -> tuple[float, int]:
        """(microseconds, bytes of the weights)."""
        tile_rows = preferred_tile_rows(type_name, rows, k)
        size = matrix_bytes(type_name, rows, k, tile_rows)
        n = max(16, min(64, (600 << 20) // size))
        copies = max(1, min(n, (600 << 20) // size))
        x = self.arena.put(np.random.default_rng(0).standard_normal((1, k)).astype(np.float32))
        gain, (out, _) = self.arena.put(np.ones(k, np.float32)), self.arena.poisoned((1, rows))
        specs = []
        for i in range(copies):
            tiles = DeviceArray(self.pool.pointer + i * size, "u8", (size,))
            matrix = PackedMatrix(type_name, rows, k, tile_rows, tiles)
            tuning = choose_tuning(self.context.limits, (matrix,), rows, k)
            norm = NormInput(gain, 1e-5)
            specs.append(Gemv((Segment(matrix, out),), x, "NORM", "STORE", tuning, norm=norm))
        self.context.prepare([specs[0].kernel])
        self.context.dependent = True
        us = microseconds(
            self.stream, lambda: [specs[i % copies].launch(self.context) for i in range(n)], n
        )
        self.context.dependent = False
        return us, size

    def gemm(self, type_name: str, rows: int, k: int) -> float:
        """TFLOP/s."""
        m, rows = 2048, min(rows, 32768)
        x = np.random.default_rng(1).standard_normal((m, k)).astype(np.float16)
        x16, (out, _) = self.arena.put(x), self.arena.poisoned((m, rows))
        matrix = PackedMatrix(type_name, rows, k, 2, self.pool)
        gemm(self.context, x16, (GemmOutput(matrix, out),))
        outputs = (GemmOutput(matrix, out),)
        us = microseconds(self.stream, lambda: gemm(self.context, x16, outputs), 1)
        return 2e-6 * m * rows * k / us


def main() -> None:
    timer = Timer()
    for type_name, rows, k in SHAPES:
        us, size = timer.gemv(type_name, rows, k)
        tflops = timer.gemm(type_name, rows, k)
        print(
            f"{type_name:6s} {rows:6d} x {k:4d}: gemv {us:7.2f} us {size / us / 1e3:5.0f} GB/s, "
            f"gemm of 2048 {tflops:4.0f} TFLOP/s",
            flush=True,
        )
        timer.arena.held = timer.arena.held[:1]


if __name__ == "__main__":
    main()
