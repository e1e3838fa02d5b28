"""Products of a matrix of each block format with given inputs, by the backend's own kernels."""

import base64
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backends import LoadOptions, Runtime
from engine.gguf import GGUFFile
from engine.gguf_writer import TensorSpec, write_gguf
from engine.loading import import_backend
from engine.probe import Case, ProbeOptions
from engine.program import Builder, Embed, KvShape, Linear, Program
from engine.quants import BLOCK_FORMATS
from engine.synthetic import random_blocks

N_INPUTS, N_ROWS, N_COLUMNS = 5, 40, 512


def matrix_bytes(type_name: str, seed: int) -> NDArray[np.uint8]:
    """uint8[N_ROWS, row_bytes]: random blocks with sane scales."""
    block = BLOCK_FORMATS[type_name]
    n_blocks = N_ROWS * N_COLUMNS // block.block_size
    rng = np.random.default_rng([seed, block.type_id])
    blocks = random_blocks(rng, type_name, N_COLUMNS, n_blocks)
    return np.ascontiguousarray(blocks).reshape(N_ROWS, -1)


def inputs(seed: int) -> NDArray[np.float32]:
    """float32[N_INPUTS, N_COLUMNS] of multiples of 1/512 in [-2, 2)."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1024, 1024, (N_INPUTS, N_COLUMNS)).astype(np.float32) / np.float32(512)


def cases(options: ProbeOptions) -> list[Case]:
    """One case a block format: all inputs together, and the first one alone."""
    x = inputs(options.seed)
    with tempfile.TemporaryDirectory(prefix="haikugate-") as folder:
        path = Path(folder) / "product.gguf"
        return [_case(path, name, x, options) for name in BLOCK_FORMATS]


def _case(path: Path, name: str, x: NDArray[np.float32], options: ProbeOptions) -> Case:
    matrix = matrix_bytes(name, options.seed)
    tensors = [
        TensorSpec("x", x.shape, "F32", lambda: [x.tobytes()]),
        TensorSpec("w", (N_ROWS, N_COLUMNS), name, lambda: [matrix.tobytes()]),
    ]
    write_gguf(path, {"general.architecture": "llama", "llama.context_length": 32}, tensors)
    load = LoadOptions(device=options.device)
    with GGUFFile.open(path) as file:
        backend = import_backend(options.device)
        runtime: Runtime = backend.load(file, _program(), load, lambda _done, _total: None)
    try:
        together = runtime.logits(list(range(N_INPUTS)), _go_on)
        alone = runtime.logits([0], _go_on)
    finally:
        runtime.close()
    return {
        "type": name,
        "rows": N_ROWS,
        "columns": N_COLUMNS,
        "matrix_sha256": sha256(matrix.tobytes()).hexdigest(),
        "inputs_sha256": sha256(x.tobytes()).hexdigest(),
        "together_base64": _encoded(together),
        "alone_base64": _encoded(alone),
    }


def _program() -> Program:
    """Rows of w times the input that the token id names."""
    build = Builder()
    embedded = build.emit(Embed(build.value(N_COLUMNS), "x"))
    body = build.take()
    product = build.emit(Linear(build.value(N_ROWS), embedded, "w"))
    return Program(body, build.take(), build.widths, embedded, product, KvShape(1, 1, 32))


def _encoded(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def _go_on() -> None:
    return
