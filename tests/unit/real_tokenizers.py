"""Tokenizers of real models, each built once from its vendor's vocabulary."""

import json
import lzma
import tempfile
from functools import cache
from pathlib import Path

from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from tests.unit.gguf_files import tokenizer_file, written

FILES = {
    "smollm2": "smollm2", "gpt-2": "gpt-2-vocab.gguf", "qwen2": "qwen2-vocab.gguf",
    "phi-3": "phi-3-vocab.gguf", "llama-3": "llama-3-vocab.gguf",
}  # fmt: skip
EVERY = (*FILES, "gpt-oss", "hf-json")


@cache
def real(name: str) -> Tokenizer:
    """The tokenizer of a name in EVERY."""
    if name == "gpt-oss":
        return harmony_from_gguf()
    if name == "hf-json":
        return harmony_from_json()
    with GGUFFile.open(tokenizer_file(FILES[name])) as file:
        return Tokenizer.from_file(file)


@cache
def o200k_json() -> str:
    """The text of o200k_harmony's tokenizer.json."""
    return lzma.decompress(tokenizer_file("gpt-oss-tokenizer.json.xz").read_bytes()).decode()


def harmony_from_gguf() -> Tokenizer:
    """The o200k vocabulary as a converter would put it into GGUF metadata."""
    content = json.loads(o200k_json())
    ids = content["model"]["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}
    texts = [f"<|unused_{index}|>" for index in range(max(ids.values()) + 1)]
    for text, token_id in ids.items():
        texts[token_id] = text
    first_added = min(token["id"] for token in content["added_tokens"])
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if i >= first_added else 1 for i in range(len(texts))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["model"]["merges"]],
    }
    path = tokenizer_file("gpt-oss-tokenizer.json.xz").with_name("test-gpt-oss-vocab.gguf")
    if not path.exists():
        written(path, "gpt-oss", keys)
    with GGUFFile.open(path) as file:
        return Tokenizer.from_file(file)


def harmony_from_json() -> Tokenizer:
    """The same from the tokenizer.json that lies beside a file without a vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        keys = {"tokenizer.ggml.model": "no_vocab"}
        path = written(Path(folder) / "m.gguf", "gpt-oss", keys)
        (Path(folder) / "tokenizer.json").write_text(o200k_json())
        with GGUFFile.open(path) as file:
            return Tokenizer.from_file(file)
