"""GGUF metadata: typed key-value pairs, read with every length checked against the file's size."""

import mmap
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np

from engine.errors import ModelLoadError

MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 32 << 20
MAX_STRINGS = 8 << 20

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


class StringArray(Sequence[str]):
    """An array of strings left in the file and decoded when read; it costs 8 bytes a string."""

    def __init__(self, content: mmap.mmap, starts: "array[int]", place: str) -> None:
        self._content, self._starts, self._place = content, starts, place

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._string(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._string(index % len(self))

    def __iter__(self) -> Iterator[str]:
        first = self._starts[0]
        content = self._content[first : self._starts[-1]]
        for index, (start, following) in enumerate(pairwise(self._starts)):
            try:
                yield content[start - first : following - 8 - first].decode()
            except UnicodeDecodeError:
                yield self._string(index)

    def _string(self, index: int) -> str:
        raw = self._content[self._starts[index] : self._starts[index + 1] - 8]
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            raise ModelLoadError(f"{self._place}: string {index} is not UTF-8: {exc}") from exc


class Cursor:
    """A position in a mapped file; every read is bounds-checked and names its place on failure."""

    def __init__(self, content: mmap.mmap, path: str) -> None:
        self.content, self.path = content, path
        self.end, self.at = len(content), 0

    def error(self, place: str, message: str) -> ModelLoadError:
        """The one-line error for what stands at `place`."""
        return ModelLoadError(f"{self.path}: {place}: {message}")

    def skip(self, size_bytes: int, place: str) -> int:
        """Move past `size_bytes` and return where they started."""
        start = self.at
        if size_bytes > self.end - start:
            raise self.error(
                place, f"{size_bytes} bytes wanted at byte {start}, the file has {self.end} bytes"
            )
        self.at = start + size_bytes
        return start

    def u32(self, place: str) -> int:
        """An unsigned 32-bit number."""
        return int(_U32.unpack_from(self.content, self.skip(4, place))[0])

    def u64(self, place: str) -> int:
        """An unsigned 64-bit number."""
        return int(_U64.unpack_from(self.content, self.skip(8, place))[0])

    def count(self, place: str, least_bytes: int, limit: int) -> int:
        """A number of items of at least `least_bytes` each: they must fit in what is left."""
        count = self.u64(place)
        most = min((self.end - self.at) // least_bytes, limit)
        if count > most:
            raise self.error(place, f"{count} items claimed, at most {most} are possible here")
        return count

    def string(self, place: str, limit_bytes: int = MAX_STRING_BYTES) -> str:
        """A UTF-8 string of at most `limit_bytes`."""
        size = self.u64(place)
        if size > limit_bytes:
            raise self.error(place, f"string of {size} bytes, at most {limit_bytes} are allowed")
        start = self.skip(size, place)
        try:
            return self.content[start : self.at].decode()
        except UnicodeDecodeError as exc:
            raise self.error(place, f"not UTF-8: {exc}") from exc


def read_metadata(cursor: Cursor, n_keys: int) -> dict[str, Any]:
    """Read `n_keys` pairs: scalars as Python values, arrays as NumPy views or StringArray."""
    metadata: dict[str, Any] = {}
    for index in range(n_keys):
        key = cursor.string(f"metadata key {index}", MAX_KEY_BYTES)
        place = f"metadata key {key[:80]!r}"
        if key in metadata:
            raise cursor.error(place, "given twice")
        metadata[key] = _value(cursor, cursor.u32(place), place)
    return metadata


def _value(cursor: Cursor, type_id: int, place: str) -> Any:
    if type_id == _STRING:
        return cursor.string(place)
    if type_id == _ARRAY:
        return _array(cursor, place)
    value = _numbers(cursor, type_id, 1, place)[0].item()
    return bool(value) if type_id == _BOOL else value


def _array(cursor: Cursor, place: str) -> Any:
    type_id = cursor.u32(place)
    if type_id == _STRING:
        return _strings(cursor, cursor.count(place, 8, MAX_STRINGS), place)
    if type_id == _ARRAY:
        raise cursor.error(place, "an array of arrays, which no supported model has")
    size = np.dtype(_SCALARS.get(type_id, "<u1")).itemsize
    numbers = _numbers(cursor, type_id, cursor.count(place, size, cursor.end), place)
    return numbers.view(np.bool_) if type_id == _BOOL else numbers


def _numbers(cursor: Cursor, type_id: int, count: int, place: str) -> "np.ndarray[Any, Any]":
    if type_id not in _SCALARS:
        raise cursor.error(place, f"value type {type_id} is not one of 0…12")
    dtype = np.dtype(_SCALARS[type_id])
    start = cursor.skip(count * dtype.itemsize, place)
    numbers = np.frombuffer(cursor.content, dtype, count, start)
    if type_id == _BOOL and count and int(numbers.max()) > 1:
        raise cursor.error(place, "a truth value is neither 0 nor 1")
    return numbers


def _strings(cursor: Cursor, count: int, place: str) -> StringArray:
    starts = array("Q", bytes(8 * (count + 1)))
    length_at: Callable[[mmap.mmap, int], tuple[int]] = _U64.unpack_from
    content, at, last = cursor.content, cursor.at, cursor.end - 8
    for index in range(count):
        if at > last:
            raise cursor.error(place, f"string {index} of {count} starts past the end of the file")
        starts[index] = at + 8
        at += 8 + length_at(content, at)[0]
    if at > cursor.end:
        raise cursor.error(place, f"string {count - 1} of {count} reaches past the end of the file")
    starts[count], cursor.at = at + 8, at
    return StringArray(content, starts, f"{cursor.path}: {place}")
