"""Makes suites/goldens/quants.json: dequantized blocks and products, by the `gguf` package.

    python -m tests.goldens.make_quant_goldens suites/goldens/quants.json

The inputs are those of the engine's probes `dequant` and `products` with seed 0; a golden names
their digests. Numbers are digests of float32 with every NaN as 0x7fc00000; products are float64
sums over the dequantized matrix, rounded to float32.
"""

import base64
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.probe import ProbeOptions
from engine.probes import dequant, products

SEED = 0


def _dequantized(type_name: str, raw: bytes) -> Any:
    with np.errstate(all="ignore"):
        kind = gguf.GGMLQuantizationType[type_name]
        found = gguf.dequantize(np.frombuffer(raw, np.uint8), kind)
    return np.asarray(found, np.float32)


def _blocks(case: dict[str, Any]) -> dict[str, Any]:
    raw = base64.b64decode(case["blocks_base64"])
    values = _dequantized(case["type"], raw)
    words = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    return {
        "input": case["input"],
        "blocks_sha256": hashlib.sha256(raw).hexdigest(),
        "values": int(values.size),
        "float32_sha256": hashlib.sha256(words.astype("<u4").tobytes()).hexdigest(),
    }


def _product(type_name: str) -> dict[str, Any]:
    matrix, x = products.matrix_bytes(type_name, SEED), products.inputs(SEED)
    shape = (products.N_ROWS, products.N_COLUMNS)
    weights = _dequantized(type_name, matrix.tobytes()).reshape(shape).astype(np.float64)
    sums = (x.astype(np.float64) @ weights.T).astype("<f4")
    return {
        "matrix_sha256": hashlib.sha256(matrix.tobytes()).hexdigest(),
        "inputs_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        "rows": products.N_ROWS,
        "inputs": products.N_INPUTS,
        "float32_base64": base64.b64encode(sums.tobytes()).decode(),
    }


def main(out: str) -> None:
    """Write the goldens of all block formats."""
    made: dict[str, Any] = {}
    for case in dequant.cases(ProbeOptions(seed=SEED)):
        made.setdefault(case["type"], {"blocks": []})["blocks"].append(_blocks(case))
    for type_name, golden in made.items():
        golden["product"] = _product(type_name)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(made[name])}" for name in made)
    head = f'"seed": {SEED}, "made_with": "gguf {version("gguf")}"'
    Path(out).write_text(f'{{{head}, "types": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
