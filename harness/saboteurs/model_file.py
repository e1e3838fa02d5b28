"""Saboteurs that load a damaged copy of the model file."""

import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.saboteurs.proxy import Saboteur

Blocks = np.ndarray[Any, np.dtype[np.uint8]]
Q4_1_TYPE_ID = 3
Q4_1_BLOCK_BYTES = 20
Q4_1_BLOCK_SIZE = 32
Q4_1_HEADER_BYTES = 4
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


@dataclass(frozen=True)
class Q4Tensor:
    """A Q4_1 tensor: its name and where its bytes lie in the file."""

    name: str
    start: int
    stop: int


class _Header:
    """Reads the head of a GGUF file that is known to be good (the honest model)."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.at = 8

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return int(value)

    def text(self) -> str:
        size = self.number("Q")
        self.at += size
        return bytes(self.content[self.at - size : self.at]).decode()

    def skip(self, kind: int) -> None:
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            member = self.number("I")
            for _ in range(self.number("Q")):
                self.skip(member)
        else:
            self.at += VALUE_BYTES[kind]


def q4_tensors(path: Path) -> Iterator[Q4Tensor]:
    """The Q4_1 tensors of a good GGUF file (version 3, default alignment)."""
    header = _Header(memoryview(path.read_bytes()))
    n_tensors, n_fields = header.number("Q"), header.number("Q")
    for _ in range(n_fields):
        header.text()
        header.skip(header.number("I"))
    found = []
    for _ in range(n_tensors):
        name = header.text()
        shape = [header.number("Q") for _ in range(header.number("I"))]
        found.append((name, math.prod(shape), header.number("I"), header.number("Q")))
    data = -(-header.at // ALIGNMENT) * ALIGNMENT
    for name, n_weights, kind, offset in found:
        if kind == Q4_1_TYPE_ID:
            start = data + offset
            size = n_weights // Q4_1_BLOCK_SIZE * Q4_1_BLOCK_BYTES
            yield Q4Tensor(name, start, start + size)


def damaged(
    path: Path, scratch: Path, wanted: Callable[[str], bool], damage: Callable[[Blocks], None]
) -> Path:
    """A copy of the file with `damage` done, in place, to each wanted Q4_1 tensor's blocks."""
    copy = scratch / path.name
    shutil.copyfile(path, copy)
    content = np.memmap(copy, dtype=np.uint8, mode="r+")
    hit = [tensor for tensor in q4_tensors(path) if wanted(tensor.name)]
    if not hit:
        raise ValueError(f"{path.name}: no Q4_1 tensor to damage")
    for tensor in hit:
        damage(content[tensor.start : tensor.stop].reshape(-1, Q4_1_BLOCK_BYTES))
    content.flush()
    return copy


class LowerQuantization(Saboteur):
    """Loads weights rounded from four bits to three."""

    name = "lower-quantization"
    cheat = "serves the model with its 4-bit weights rounded to 3 bits"
    caught_by = "G4-GENUINE-RESCORE"

    def model(self, path: Path, scratch: Path) -> Path:
        """Clear the lowest bit of every weight."""

        def round_down(blocks: Blocks) -> None:
            blocks[:, Q4_1_HEADER_BYTES:] &= 0xEE

        return damaged(path, scratch, lambda name: True, round_down)


class PerturbedWeights(Saboteur):
    """Loads a slightly different fine-tune."""

    name = "perturbed-weights"
    cheat = "serves another fine-tune: two weights of each 32 moved by one step"
    caught_by = "G4-GENUINE-RESCORE"

    def model(self, path: Path, scratch: Path) -> Path:
        """Flip the lowest bit of the two weights in each block's first byte."""

        def move(blocks: Blocks) -> None:
            blocks[:, Q4_1_HEADER_BYTES] ^= 0x11

        return damaged(path, scratch, lambda name: True, move)


class SkippedLayer(Saboteur):
    """Runs without one layer."""

    name = "skipped-layer"
    cheat = "skips one layer: its output matrices are zero"
    caught_by = "G4-GENUINE-RESCORE"
    outputs = ("blk.14.attn_output.weight", "blk.14.ffn_down.weight")

    def model(self, path: Path, scratch: Path) -> Path:
        """Zero the layer's contribution."""

        def zero(blocks: Blocks) -> None:
            blocks[:] = 0

        return damaged(path, scratch, lambda name: name in self.outputs, zero)


class SmallerModel(Saboteur):
    """Serves a model with fewer layers."""

    name = "smaller-model"
    cheat = "serves a smaller model: two thirds of the layers"
    caught_by = "G4-GENUINE-RESCORE"
    kept_layers = 20

    def model(self, path: Path, scratch: Path) -> Path:
        """Zero the last third of the layers: the cost stays, the model is another."""

        def zero(blocks: Blocks) -> None:
            blocks[:] = 0

        def late_output(name: str) -> bool:
            parts = name.split(".")
            is_output = name.endswith(("attn_output.weight", "ffn_down.weight"))
            return is_output and int(parts[1]) >= self.kept_layers

        return damaged(path, scratch, late_output, zero)
