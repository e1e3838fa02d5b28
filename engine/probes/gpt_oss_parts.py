"""The parts of a GPT-OSS layer with MXFP4 matrices, one by one, by the backend's own kernels."""

import base64
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from engine.adapters.gpt import FORWARD
from engine.adapters.weights import Weights
from engine.backends import LoadOptions, Runtime
from engine.config import ModelConfig
from engine.gguf import GGUFFile
from engine.loading import import_backend
from engine.probe import Case, ProbeOptions
from engine.program import Add, KvShape, Linear, Program, Value
from engine.synthetic import write_model

MODEL = "tiny-gpt-oss-mxfp4"
LAYER = "blk.0"
TOKEN_IDS = (0, 1, 2, 3, 1, 3, 0, 2)
"""Below the narrowest part's width, which counts as its vocabulary."""


def _product(forward: Any, x: Value) -> Value:
    c = forward.config
    out: Value = forward.linear(x, c.n_heads * c.head_dim, f"{LAYER}.attn_q")
    return out


def _attention(forward: Any, x: Value) -> Value:
    out: Value = forward.attention(x, LAYER, 0)
    return out


def _router(forward: Any, x: Value) -> Value:
    h = forward.norm(x, f"{LAYER}.post_attention_norm")
    out: Value = forward.linear(h, forward.config.n_experts, f"{LAYER}.ffn_gate_inp")
    return out


def _experts(forward: Any, x: Value) -> Value:
    out: Value = forward.feed_forward(x, LAYER)
    return out


def _head(forward: Any, x: Value) -> Value:
    c, build = forward.config, forward.build
    output = forward.weights.head(c.vocab_size, c.width)
    out: Value = build.emit(
        Linear(build.value(c.vocab_size), forward.norm(x, "output_norm"), output)
    )
    return out


PARTS: Mapping[str, Callable[[Any, Value], Value]] = {
    "product": _product,
    "attention": _attention,
    "router": _router,
    "experts": _experts,
    "head": _head,
}
"""Each part reads the embeddings of TOKEN_IDS."""


def cases(options: ProbeOptions) -> list[Case]:
    """One case a part: twice its output, float32[tokens, width]."""
    with tempfile.TemporaryDirectory(prefix="haikugate-") as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, MODEL, options.seed)
        digest = sha256(path.read_bytes()).hexdigest()
        with GGUFFile.open(path) as file:
            return [_case(file, part, options) | {"model_sha256": digest} for part in PARTS]


def _case(file: GGUFFile, part: str, options: ProbeOptions) -> Case:
    program = _program(file, part)
    load = LoadOptions(device=options.device)
    backend = import_backend(options.device)
    runtime: Runtime = backend.load(file, program, load, lambda _done, _total: None)
    try:
        values = np.asarray(runtime.logits(TOKEN_IDS, _go_on), "<f4")
    finally:
        runtime.close()
    return {
        "part": part,
        "token_ids": list(TOKEN_IDS),
        "width": program.logits.width,
        "doubled_base64": base64.b64encode(values.tobytes()).decode(),
    }


def _program(file: GGUFFile, part: str) -> Program:
    """The part alone; the head adds its output to itself, for every program needs one."""
    config = ModelConfig.from_file(file)
    forward = FORWARD[config.architecture](config, Weights(file.tensors))
    out = PARTS[part](forward, forward.embed())
    body, build = forward.build.take(), forward.build
    doubled = build.emit(Add(build.value(out.width), out, out))
    kv = KvShape(config.n_layers, config.n_kv_heads, config.head_dim)
    return Program(body, build.take(), build.widths, out, doubled, kv)


def _go_on() -> None:
    return
