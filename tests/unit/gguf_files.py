"""GGUF files for tests, written by the `gguf` package or, where they must be wrong, by hand."""

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.default_model import DEFAULT_MODEL
from tests.goldens.vocabularies import kept


def tokenizer_file(name: str) -> Path:
    """A file with a large vocabulary, fetched once; skips offline, never in CI."""
    if name == "smollm2":
        return DEFAULT_MODEL
    try:
        return kept(name)
    except LookupError as exc:
        unavailable = pytest.fail if os.environ.get("CI") else pytest.skip
        unavailable(f"{exc}; HAIKUGATE_TOKENIZER_DATA names a folder that has it")


def entry(name: bytes, shape: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + dimensions + struct.pack("<IQ", type_id, offset)


def raw_file(
    path: Path, pairs: list[bytes], entries: list[bytes], data: int = 4096, **counts: int
) -> Path:
    """A file from raw parts; `n_tensors`, `n_keys` and `version` may lie."""
    head = b"GGUF" + struct.pack(
        "<IQQ",
        counts.get("version", 3),
        counts.get("n_tensors", len(entries)),
        counts.get("n_keys", len(pairs)),
    )
    body = head + b"".join(pairs) + b"".join(entries)
    path.write_bytes(body + bytes(-len(body) % 32) + bytes(data))
    return path


def pair(key: str, type_id: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", type_id) + value


def written(path: Path, architecture: str, keys: dict[str, Any]) -> Path:
    """A file of metadata alone, by the `gguf` package; a key without a dot gets the prefix."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32,
              float: writer.add_float32, list: writer.add_array}  # fmt: skip
    if value is not None:
        adders[type(value)](key, value.tolist() if isinstance(value, np.ndarray) else value)
