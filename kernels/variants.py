"""One compilation unit of each source with variants that cover every type and template branch."""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kernels.attention import (
    AttentionShape,
    DecodeTuning,
    attention_decode_kernel,
    attention_prefill_kernel,
)
from kernels.compile import ARCHITECTURES, Unit, compile_unit, source_names
from kernels.errors import KernelCompileError
from kernels.gemm import FewTuning, FewVariant, GemmVariant
from kernels.gemm_warpgroup import TILES, warpgroup_kernel
from kernels.matrix import TILE_FORMATS

_GEMV_BRANCHES = (
    ("Q8_0", "Q8_0", 512, 2, 4, 1, "ATTENTION", "ADD_ROUTE", 1, 4, 0),
    ("Q8_0", "Q8_0", 512, 2, 4, 1, "ATTENTION", "ADD", 1, 0, 0),
    ("MXFP4", "MXFP4", 512, 2, 4, 2, "EXPERT_IN", "CLAMPED", 32, 4, 0),
    ("MXFP4", "MXFP4", 512, 2, 4, 2, "EXPERT_OUT_PRO", "EXPERT_OUT", 32, 4, 0),
    ("Q4_K", "Q6_K", 512, 1, 4, 2, "NORM", "STORE", 1, 0, 0),
    ("Q4_K", "Q4_K", 512, 4, 4, 2, "NORM", "SILU", 1, 0, 0),
    ("Q8_0", "Q8_0", 512, 1, 4, 4, "NORM", "LOGITS", 1, 0, 1),
)


def gemv_entry(parameters: tuple[object, ...]) -> str:
    """The code of one gemv variant."""
    joined = ", ".join(str(p) for p in parameters)
    name = "gemv_" + "_".join(str(p) for p in parameters)
    return f"ENTRY {name}(const __grid_constant__ GemvArgs a) {{ gemv<{joined}>(a); }}"


def _gemv_entries() -> tuple[str, ...]:
    plain = [(t, t, 512, 2, 4, 2, "PLAIN", "ADD", 1, 0, 0) for t in TILE_FORMATS]
    return tuple(gemv_entry(p) for p in (*plain, *_GEMV_BRANCHES))


def _gemm_entries() -> tuple[str, ...]:
    quantized = [t for t, form in TILE_FORMATS.items() if not form.is_float]
    variants = [GemmVariant(t, "STORE") for t in quantized]
    variants += [GemmVariant("Q4_K", "ADD"), GemmVariant("Q4_K", "SILU")]
    variants += [GemmVariant("MXFP4", "CLAMPED", "EXPERT_IN")]
    variants += [
        GemmVariant("MXFP4", "STORE", "EXPERT_OUT"),
        GemmVariant("Q6_K", "STORE", "DENSE", 32),
    ]
    return tuple(v.kernel.code for v in variants)


def _gemm_warpgroup_entries() -> tuple[str, ...]:
    quantized = [t for t, form in TILE_FORMATS.items() if not form.is_float]
    kernels = [warpgroup_kernel((t, "STORE", "DENSE"), TILES[1]) for t in quantized]
    kernels += [warpgroup_kernel(("Q4_K", "ADD", "DENSE"), TILES[0])]
    kernels += [warpgroup_kernel(("Q4_K", "SILU", "DENSE"), TILES[2])]
    kernels += [warpgroup_kernel(("MXFP4", "CLAMPED", "EXPERT_IN"), TILES[1])]
    kernels += [warpgroup_kernel(("MXFP4", "STORE", "EXPERT_OUT"), TILES[1])]
    return tuple(kernel.code for kernel in kernels)


def _gemm_few_entries() -> tuple[str, ...]:
    tuning = FewTuning(8, 2, 2)
    quantized = [t for t, form in TILE_FORMATS.items() if not form.is_float]
    variants = [FewVariant(t, "STORE", "DENSE", FewTuning(16, 1, 1)) for t in quantized]
    variants += [FewVariant("Q4_K", "ADD", "DENSE", tuning)]
    variants += [FewVariant("Q4_K", "SILU", "DENSE", tuning)]
    variants += [FewVariant("MXFP4", "CLAMPED", "EXPERT_IN", tuning)]
    variants += [FewVariant("MXFP4", "STORE", "EXPERT_OUT", tuning)]
    return tuple(v.kernel.code for v in variants)


def _decode_entries() -> tuple[str, ...]:
    shapes = (AttentionShape(8, 1, 64, 1.0), AttentionShape(1, 1, 96, 1.0))
    kernels = [attention_decode_kernel(s, "half", DecodeTuning(4, 1)) for s in shapes]
    shape = AttentionShape(7, 1, 128, 1.0)
    kernels += [attention_decode_kernel(shape, "adjacent", DecodeTuning(4, 2, 8))]
    kernels += [attention_decode_kernel(AttentionShape(3, 1, 80, 1.0), "none", DecodeTuning(8, 2))]
    return tuple(k.code for k in kernels)


def representative_units() -> list[Unit]:
    """Every source once, template sources with their variants."""
    entries = {
        "gemv.cu": _gemv_entries(),
        "gemm.cu": _gemm_entries(),
        "gemm_warpgroup.cu": _gemm_warpgroup_entries(),
        "gemm_few.cu": _gemm_few_entries(),
        "attention_decode.cu": _decode_entries(),
        "attention_prefill.cu": tuple(
            attention_prefill_kernel(head_dim).code for head_dim in (16, 64, 80, 96, 128)
        ),
    }
    return [Unit(name, entries.get(name, ())) for name in source_names()]


def compile_all(architectures: Iterable[str] = ARCHITECTURES) -> list[dict[str, Any]]:
    """Compile every source for every architecture, template variants included, one a core at once.

    Returns one dict a compilation: source, architecture, entries, ok, cubin_bytes, seconds, error.
    """
    asked = [(unit, arch) for arch in architectures for unit in representative_units()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(lambda each: _compile_result(*each), asked))


def _compile_result(unit: Unit, architecture: str) -> dict[str, Any]:
    start = time.perf_counter()
    cubin, error = b"", ""
    try:
        cubin = compile_unit(unit, architecture)
    except KernelCompileError as failure:
        error = str(failure)
    return {
        "source": unit.source,
        "architecture": architecture,
        "entries": len(unit.entries),
        "ok": not error,
        "cubin_bytes": len(cubin),
        "seconds": round(time.perf_counter() - start, 3),
        "error": error,
    }
