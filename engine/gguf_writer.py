"""Writes GGUF v3 files, tensor data streamed so that memory stays bounded."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.quants import BLOCK_FORMATS

ALIGNMENT = 32
_SCALARS = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}
_ARRAYS = {"float32": 6, "int32": 5, "uint32": 4, "uint8": 0}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write: row-major `shape`, a type of BLOCK_FORMATS, and where its bytes are from.

    `content` yields the tensor's bytes in order.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    content: Callable[[], Iterable[bytes]]

    @property
    def size_bytes(self) -> int:
        """Bytes that `content` must yield."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * BLOCK_FORMATS[self.type].row_bytes(self.shape[-1])


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[TensorSpec]) -> int:
    """Write the file whole or not at all, and return its size in bytes.

    Metadata values: str, bool, int (as uint32), float (as float32), a NumPy array, a list of str.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(_head(metadata, tensors))
            for tensor in tensors:
                file.write(bytes(-file.tell() % ALIGNMENT))
                _stream(file.write, tensor)
            size = file.tell()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def _stream(write: Callable[[bytes], Any], tensor: TensorSpec) -> None:
    written = 0
    for piece in tensor.content():
        write(piece)
        written += len(piece)
    if written != tensor.size_bytes:
        raise ValueError(f"{tensor.name}: {tensor.size_bytes} bytes wanted, got {written}")


def _head(metadata: Mapping[str, Any], tensors: Sequence[TensorSpec]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
        parts.append(struct.pack("<IQ", BLOCK_FORMATS[tensor.type].type_id, offset))
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT
    return b"".join(parts)


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, _ARRAYS[value.dtype.name], len(value)) + value.tobytes()
    type_id, form = _SCALARS[type(value)]
    return struct.pack("<I", type_id) + struct.pack(form, value)
