"""Dequantization of random and of adversarial blocks, inputs and outputs in full."""

import base64
import random

import numpy as np

from engine.probe import Case, ProbeOptions
from engine.quants import BLOCK_FORMATS, BlockFormat

_MIN_BLOCKS, _MIN_VALUES = 8, 1024
_FILLS = {"zeros": 0x00, "ones": 0xFF, "alternating": 0xAA, "half-one": 0x3C}


def cases(options: ProbeOptions) -> list[Case]:
    """Each block format on random blocks of the seed and on constant bytes."""
    found: list[Case] = []
    for name, block_format in BLOCK_FORMATS.items():
        n_blocks = max(_MIN_BLOCKS, _MIN_VALUES // block_format.block_size)
        size_bytes = n_blocks * block_format.block_bytes
        inputs = {"random": random.Random(f"{options.seed}/{name}").randbytes(size_bytes)}  # noqa: S311
        inputs |= {fill: bytes([value]) * size_bytes for fill, value in _FILLS.items()}
        found += [_case(block_format, kind, raw) for kind, raw in inputs.items()]
    return found


def _case(block_format: BlockFormat, kind: str, raw: bytes) -> Case:
    with np.errstate(all="ignore"):
        values = block_format.dequantize(np.frombuffer(raw, np.uint8))
    return {
        "type": block_format.name,
        "input": kind,
        "block_bytes": block_format.block_bytes,
        "block_size": block_format.block_size,
        "blocks_base64": base64.b64encode(raw).decode(),
        "float32_base64": base64.b64encode(values.astype("<f4").tobytes()).decode(),
    }
