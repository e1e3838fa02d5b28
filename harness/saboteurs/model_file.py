"""Saboteurs that load a damaged copy of the model file."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.saboteurs.proxy import Saboteur

Tensor = dict[str, Any]
Blocks = np.ndarray[Any, np.dtype[np.uint8]]
Q4_1_BLOCK_BYTES = 20
Q4_1_HEADER_BYTES = 4


def tensors(path: Path) -> list[Tensor]:
    """Name, type, offset and bytes of each tensor, as the reference engine reads them."""
    command = [sys.executable, "-m", "engine.cli", "inspect", str(path), "--json"]
    inspected = subprocess.run(command, check=True, capture_output=True)
    found: list[Tensor] = json.loads(inspected.stdout)["tensors"]
    return found


def damaged(
    path: Path, scratch: Path, wanted: Callable[[str], bool], damage: Callable[[Blocks], None]
) -> Path:
    """A copy of the file with `damage` done, in place, to each wanted Q4_1 tensor's blocks."""
    copy = scratch / path.name
    shutil.copyfile(path, copy)
    content = np.memmap(copy, dtype=np.uint8, mode="r+")
    hit = [t for t in tensors(path) if t["type"] == "Q4_1" and wanted(t["name"])]
    if not hit:
        raise ValueError(f"{path.name}: no Q4_1 tensor to damage")
    for tensor in hit:
        start, stop = tensor["offset"], tensor["offset"] + tensor["bytes"]
        damage(content[start:stop].reshape(-1, Q4_1_BLOCK_BYTES))
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
    cheat = "serves another fine-tune: one weight in sixteen moved by one step"
    caught_by = "G4-GENUINE-RESCORE"

    def model(self, path: Path, scratch: Path) -> Path:
        """Flip the lowest bit of one weight of each block's pairs."""

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
