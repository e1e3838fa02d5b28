"""Arrays and packed matrices on the device, with their float64 values beside them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import cuda_probe_arrays
from engine.backends.cuda_device import import_cupy
from engine.quants import BLOCK_FORMATS

_SCALE_OFFSETS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


class Arena(cuda_probe_arrays.Arena):
    """The probe's arena on the CuPy that is installed."""

    def __init__(self) -> None:
        super().__init__(import_cupy())


def random_blocks(rng: np.random.Generator, type_name: str, rows: int, k: int) -> NDArray[np.uint8]:
    """Random GGUF rows whose weights have a spread near 0.05."""
    form = BLOCK_FORMATS[type_name]
    if form.block_size == 1:
        values = (rng.standard_normal((rows, k)) * 0.05).astype(np.float32)
        if type_name == "F32":
            return values.view(np.uint8)
        if type_name == "F16":
            return values.astype(np.float16).view(np.uint8)
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    n = rows * k // form.block_size
    blocks = rng.integers(0, 256, (n, form.block_bytes), dtype=np.uint8)
    if type_name == "MXFP4":
        blocks[:, 0] = rng.integers(118, 124, n)
    for i, at in enumerate(_SCALE_OFFSETS.get(type_name, ())):
        size = {"Q8_0": 4e-4, "Q6_K": 2e-5, "Q4_K": 1e-4, "Q5_K": 5e-5}.get(type_name, 4e-3)
        scale = (
            size * rng.uniform(0.5, 1.5, n) * (-1 if i and "K" not in type_name else 1)
        ).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def relative_error(got: Any, want: NDArray[np.float64]) -> float:
    """‖got - want‖ / ‖want‖; infinite for anything not finite."""
    values = np.asarray(got.get() if hasattr(got, "get") else got, np.float64)
    if values.shape != want.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.linalg.norm(values - want) / max(np.linalg.norm(want), 1e-30))
