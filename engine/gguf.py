"""A GGUF v3 file, memory-mapped: metadata and tensors, nothing trusted before it is checked.

Source: the GGUF specification (header, typed metadata, tensor table, aligned tensor data).
"""

import math
import mmap
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import quants
from engine.errors import ModelLoadError
from engine.metadata import MAX_KEYS, Cursor, read_metadata

MAX_TENSORS = 32_768
MAX_NAME_BYTES = 64
MAX_DIMENSIONS = 4
_HEADER_BYTES = 24
_LEAST_KEY_BYTES = 13
_LEAST_TENSOR_BYTES = 32
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor as stored.

    `shape` is row-major (a matrix is (rows, cols)), `raw` a read-only view of the file,
    uint8[rows_total, row_bytes], `type` a name of `quants.BLOCK_FORMATS`.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.raw.nbytes

    def dequantize(self) -> NDArray[np.float32]:
        """The whole tensor as float32[shape]."""
        return quants.dequantize_tensor(self.type, self.raw, self.shape)


@dataclass(frozen=True)
class _Entry:
    """A line of the tensor table."""

    name: str
    format: quants.BlockFormat
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """An open GGUF file; views of it stay valid after `close` for as long as they are held."""

    def __init__(
        self, path: Path, content: mmap.mmap, metadata: Mapping[str, Any], tensors: list[Tensor]
    ) -> None:
        self.path = path
        self.size_bytes = len(content)
        self.metadata = metadata
        self.tensors: Mapping[str, Tensor] = {tensor.name: tensor for tensor in tensors}
        self._content = content

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "GGUFFile":
        """Map and check the file at `path`; ModelLoadError names what is wrong and where."""
        path = Path(path)
        content = _map(path)
        cursor = Cursor(content, path.name)
        n_tensors = _read_header(cursor)
        n_keys = cursor.count("metadata count", _LEAST_KEY_BYTES, MAX_KEYS)
        metadata = read_metadata(cursor, n_keys)
        if n_tensors > (cursor.end - cursor.at) // _LEAST_TENSOR_BYTES:
            raise cursor.error("tensor count", f"{n_tensors} tensors do not fit in the file")
        entries = _read_entries(cursor, n_tensors)
        tensors = _place(cursor, entries, _alignment(cursor, metadata))
        return cls(path, content, metadata, tensors)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Bytes stored by tensor type, largest first."""
        totals: Counter[str] = Counter()
        for tensor in self.tensors.values():
            totals[tensor.type] += tensor.size_bytes
        return dict(totals.most_common())

    @property
    def quant_kind(self) -> str:
        """The tensor type that most of the weights' bytes are stored in."""
        return quants.quant_kind(self.bytes_by_type)

    def close(self) -> None:
        """Let go of metadata and tensors; the mapping ends when the last view of it does."""
        self.metadata, self.tensors = {}, {}
        try:
            self._content.close()
        except BufferError:
            del self._content
            self._content = mmap.mmap(-1, 1)

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            if size < _HEADER_BYTES:
                raise ModelLoadError(
                    f"{path}: not a GGUF file: {size} bytes, the header alone has {_HEADER_BYTES}"
                )
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as exc:
        raise ModelLoadError(f"{path}: cannot open the model file: {exc}") from exc


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def _read_header(cursor: Cursor) -> int:
    """Check magic and version and return the claimed number of tensors."""
    start = cursor.skip(4, "magic")
    magic = cursor.content[start : start + 4]
    if magic != b"GGUF":
        raise cursor.error("magic", f"not a GGUF file: b'GGUF' wanted, got {magic!r}")
    version = cursor.u32("version")
    if version == 3 << 24:
        raise cursor.error("version", "a big-endian GGUF file; only little-endian is supported")
    if version != 3:
        raise cursor.error("version", f"GGUF version 3 wanted, got {version}; convert it again")
    return cursor.count("tensor count", _LEAST_TENSOR_BYTES, MAX_TENSORS)


def _alignment(cursor: Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise cursor.error(
            "metadata key 'general.alignment'",
            f"a multiple of 8 up to {1 << 20} wanted, got {str(alignment)[:40]!r}",
        )
    return alignment


def _read_entries(cursor: Cursor, n_tensors: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for index in range(n_tensors):
        name = cursor.string(f"tensor {index}: name", MAX_NAME_BYTES)
        if name in entries:
            raise cursor.error(f"tensor {name!r}", "given twice")
        entries[name] = _read_entry(cursor, name)
    return list(entries.values())


def _read_entry(cursor: Cursor, name: str) -> _Entry:
    place = f"tensor {name!r}"
    n_dimensions = cursor.u32(place)
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise cursor.error(place, f"1 to {MAX_DIMENSIONS} dimensions wanted, got {n_dimensions}")
    shape = tuple(cursor.u64(place) for _ in range(n_dimensions))[::-1]
    if min(shape) < 1 or max(shape) > cursor.end * 8:
        raise cursor.error(place, f"shape {list(shape)} is impossible in {cursor.end} bytes")
    block_format = _format(cursor, place, cursor.u32(place))
    try:
        row_bytes = block_format.row_bytes(shape[-1])
    except ValueError as exc:
        raise cursor.error(place, str(exc)) from exc
    return _Entry(name, block_format, shape, cursor.u64(place), row_bytes)


def _format(cursor: Cursor, place: str, type_id: int) -> quants.BlockFormat:
    block_format = quants.FORMAT_OF_TYPE_ID.get(type_id)
    if block_format is None:
        type_name = quants.UNSUPPORTED_TYPES.get(type_id, "unknown")
        raise cursor.error(
            place,
            f"type {type_name} (id {type_id}) is not supported; supported are "
            + ", ".join(quants.BLOCK_FORMATS),
        )
    return block_format


def _place(cursor: Cursor, entries: list[_Entry], alignment: int) -> list[Tensor]:
    """Check that the tensors lie aligned, apart and inside the file, and view them."""
    data_start = -(-cursor.at // alignment) * alignment
    free_from, before = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.offset):
        place = f"tensor {entry.name!r}"
        if entry.offset % alignment:
            raise cursor.error(place, f"offset {entry.offset} is no multiple of {alignment}")
        if entry.offset < free_from:
            raise cursor.error(place, f"overlaps tensor {before!r}")
        free_from, before = entry.offset + entry.size_bytes, entry.name
        if data_start + free_from > cursor.end:
            raise cursor.error(
                place,
                f"ends at byte {data_start + free_from}, the file has {cursor.end} bytes; "
                "was it cut off?",
            )
    return [_view(cursor, entry, data_start) for entry in entries]


def _view(cursor: Cursor, entry: _Entry, data_start: int) -> Tensor:
    raw = np.frombuffer(cursor.content, np.uint8, entry.size_bytes, data_start + entry.offset)
    if entry.format.name == "F32" and len(entry.shape) == 1:
        _require_finite(cursor, entry, raw.view("<f4"))
    return Tensor(entry.name, entry.format.name, entry.shape, raw.reshape(-1, entry.row_bytes))


def _require_finite(cursor: Cursor, entry: _Entry, numbers: NDArray[np.float32]) -> None:
    finite = np.isfinite(numbers)
    if not finite.all():
        index = int(finite.argmin())
        raise cursor.error(
            f"tensor {entry.name!r}", f"number {index} is {numbers[index]}, a finite one wanted"
        )
