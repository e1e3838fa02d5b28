"""Weights stay quantized in memory: loading costs about the file's bytes, whatever the type."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.quants import BLOCK_FORMATS
from engine.synthetic import Shape, write_shape

LLAMA = {"n_layers": 4, "n_heads": 32, "n_kv_heads": 32, "head_dim": 64, "vocab_size": 1024}
GPT_OSS = {
    "n_layers": 2, "n_heads": 16, "n_kv_heads": 4, "head_dim": 64, "vocab_size": 1024,
    "sliding_window": 64, "n_experts": 32, "n_experts_used": 4, "rope_scaling": (8.0, 128),
}  # fmt: skip
FFN = {"Q4_0": 12_288, "Q8_0": 5120, "Q5_K": 9216, "Q6_K": 7168}
FILE_BYTES = 200e6
WORKSPACE_BYTES = 40 << 20
"""Activations, threads' scratch, compiled kernels, a chunk of repacking."""

LOAD = """
import json, psutil, sys
from pathlib import Path
import engine.backends.cpu
from engine.backends import LoadOptions
from engine.loading import load_model
load_model(Path(sys.argv[1]), LoadOptions(n_threads=1)).close()
rss = psutil.Process().memory_info().rss
model = load_model(Path(sys.argv[2]), LoadOptions(n_threads=1, kv_cache_mb=16))
grown = psutil.Process().memory_info().rss - rss
print(json.dumps({"grown": grown, "weights": model.runtime.memory().weights_bytes}))
"""


def shape(kind: str, *, small: bool) -> Shape:
    if kind == "MXFP4":
        width = 256 if small else 1024
        types = {"default": "Q8_0", "experts": "MXFP4"}
        rest = {"architecture": "gpt-oss", "width": width, "ffn_width": 256 if small else 1920}
        return Shape(**rest, **GPT_OSS, context_length=256, types=types)
    ffn_width = 512 if small else FFN[kind]
    rest = {"architecture": "llama", "width": 512 if small else 2048, "ffn_width": ffn_width}
    return Shape(**rest, **LLAMA, context_length=256, types={"default": kind})


@pytest.mark.parametrize("kind", [*FFN, "MXFP4"])
def test_loading_grows_by_the_files_bytes(kind: str, tmp_path: Path) -> None:
    """The kernels are compiled on a small model first; what grows then is the large one's."""
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    write_shape(small, shape(kind, small=True), "small")
    size = write_shape(large, shape(kind, small=False), "large")
    assert 0.8 * FILE_BYTES < size < 1.3 * FILE_BYTES
    command = [sys.executable, "-c", LOAD, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    seen = json.loads(done.stdout)
    bits = 8 * BLOCK_FORMATS[kind].block_bytes / BLOCK_FORMATS[kind].block_size
    assert seen["weights"] < 1.02 * size
    assert seen["grown"] < 1.02 * size + WORKSPACE_BYTES < 32 / bits * size
