"""Prints achieved GB/s and TFLOP/s of the linears at the shapes of full-size models."""

import numpy as np

from engine.backends.cuda_device import open_device
from kernels.context import KernelContext
from kernels.gemm import gemm
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


def main() -> None:
    import cupy

    context = KernelContext(open_device("cuda:0").limits)
    stream = cupy.cuda.Stream(non_blocking=True)
    context.stream, arena = stream.ptr, Arena()
    pool, array = arena.poisoned((700 << 20,), "u1")
    array.fill(3)
    for type_name, rows, k in SHAPES:
        tile_rows = preferred_tile_rows(type_name, rows, k)
        size = matrix_bytes(type_name, rows, k, tile_rows)
        copies = max(1, min(64, (600 << 20) // size))
        x = arena.put(np.random.default_rng(0).standard_normal((1, k)).astype(np.float32))
        gain, (out, _) = arena.put(np.ones(k, np.float32)), arena.poisoned((1, rows))
        matrices = [
            PackedMatrix(
                type_name, rows, k, tile_rows, type(pool)(pool.pointer + i * size, "u8", (size,))
            )
            for i in range(copies)
        ]
        tuning = choose_tuning(context.limits, (matrices[0],), rows, k)
        specs = [
            Gemv((Segment(m, out),), x, "NORM", "STORE", tuning, norm=NormInput(gain, 1e-5))
            for m in matrices
        ]
        context.dependent = True
        context.prepare([specs[0].kernel])
        specs[0].launch(context)
        n = max(copies, 16)
        us = microseconds(stream, lambda: [specs[i % copies].launch(context) for i in range(n)], n)
        context.dependent = False
        m = 2048
        x16 = arena.put(np.random.default_rng(1).standard_normal((m, k)).astype(np.float16))
        big, _ = arena.poisoned((m, min(rows, 32768)))
        part = PackedMatrix(type_name, min(rows, 32768), k, tile_rows, matrices[0].tiles)
        gemm(context, x16, part, big)
        many = microseconds(stream, lambda: gemm(context, x16, part, big), 1)
        print(
            f"{type_name:6s} {rows:6d}x{k:4d} {tuning} gemv {us:7.2f} us {size / us / 1e3:5.0f} GB/s | "
            f"gemm 2048: {many:8.1f} us {2e-6 * m * part.rows * k / many:5.0f} TFLOP/s",
            flush=True,
        )
        arena.held = arena.held[:1]


if __name__ == "__main__":
    main()
