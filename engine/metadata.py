"""GGUF metadata: typed key-value pairs, read with every length checked against the file's size."""

import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelLoadError

MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 32 << 20
MAX_STRINGS = 8 << 20

_LENGTH_BYTES = 8
_WINDOW_BYTES = 1 << 16
_ONE_BY_ONE = 1024
_BLOCK_STRINGS = 1 << 14
_BLOCK_BYTES = 8 << 20
_SPACE = 0x20
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


class StringArray(Sequence[str]):
    """An array of strings left in the file and decoded when read; it costs 8 bytes a string."""

    def __init__(self, content: mmap.mmap, starts: NDArray[np.int64], place: str) -> None:
        self._content, self._starts, self._place = content, starts, place

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            wanted = range(*index.indices(len(self)))
            block = self._block(wanted.start, wanted.stop) if wanted.step == 1 else None
            return [self._string(i) for i in wanted] if block is None else block
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._string(index % len(self))

    def __iter__(self) -> Iterator[str]:
        firsts = range(0, len(self), _BLOCK_STRINGS)
        return chain.from_iterable(self[first : first + _BLOCK_STRINGS] for first in firsts)

    def halves(self) -> Iterator[tuple[str, ...]]:
        """Each string cut at its first space, or whole where it has none."""
        firsts = range(0, len(self), _BLOCK_STRINGS)
        return chain.from_iterable(self._halves(first, first + _BLOCK_STRINGS) for first in firsts)

    def _halves(self, first: int, stop: int) -> Iterable[tuple[str, ...]]:
        """Strings [first, stop) in halves; by one cut of all of them where each has one space."""
        joined = self._joined(first, min(stop, len(self)))
        if joined is not None:
            cuts = joined[(joined == 0) | (joined == _SPACE)]
            if cuts[::2].all() and not cuts[1::2].any() and cuts.size % 2:
                joined[joined == _SPACE] = 0
                texts = _texts(joined)
                if texts is not None:
                    return zip(texts[::2], texts[1::2], strict=True)
        return [tuple(text.split(" ", 1)) for text in self[first:stop]]

    def _block(self, first: int, stop: int) -> list[str] | None:
        """Strings [first, stop) decoded at once; None where that cannot be."""
        joined = self._joined(first, stop)
        return None if joined is None else _texts(joined)

    def _joined(self, first: int, stop: int) -> NDArray[np.uint8] | None:
        """The bytes of strings [first, stop), one NUL in place of the length before each.

        None where that cannot be: no string or too many bytes, or a NUL in a string.
        """
        starts = self._starts[first : stop + 1]
        if first >= stop or starts[-1] - starts[0] > _BLOCK_BYTES:
            return None
        raw = np.frombuffer(self._content[starts[0] : starts[-1] - _LENGTH_BYTES], np.uint8).copy()
        lengths_at = starts[1:-1] - starts[0] - _LENGTH_BYTES
        kept = np.ones(raw.size, np.bool_)
        for byte in range(1, _LENGTH_BYTES):
            kept[lengths_at + byte] = False
        raw[lengths_at] = 0
        joined = raw[kept]
        if joined.size - np.count_nonzero(joined) != lengths_at.size:
            return None
        return joined

    def _string(self, index: int) -> str:
        raw = self._content[self._starts[index] : self._starts[index + 1] - _LENGTH_BYTES]
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            raise ModelLoadError(f"{self._place}: string {index} is not UTF-8: {exc}") from exc


def _texts(joined: NDArray[np.uint8]) -> list[str] | None:
    """What NULs part, decoded; None where it is not UTF-8."""
    try:
        return joined.tobytes().decode().split("\0")
    except UnicodeDecodeError:
        return None


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
    starts = np.empty(count + 1, np.int64)
    content, done = np.frombuffer(cursor.content, np.uint8), 0
    while done < count:
        found = _short_strings(content[cursor.at : cursor.at + _WINDOW_BYTES])[: count - done]
        starts[done : done + found.size] = found + (cursor.at + _LENGTH_BYTES)
        done += found.size
        if found.size:
            cursor.at += int(found[-1]) + _LENGTH_BYTES + int(content[cursor.at + found[-1]])
        if found.size < _ONE_BY_ONE:
            done = _step(cursor, starts, done, place)
    if cursor.at > cursor.end:
        raise cursor.error(place, f"string {count - 1} of {count} reaches past the end of the file")
    starts[count] = cursor.at + _LENGTH_BYTES
    return StringArray(cursor.content, starts, f"{cursor.path}: {place}")


def _short_strings(window: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where strings of 1 to 255 bytes without NULs begin, from the window's start on.

    The length of such a one is the only byte above 0 that exactly seven NULs follow; each place is
    kept only where the one before, and its length, lead to it. There may be none.
    """
    empty = window == 0
    four = empty[:-3] & empty[1:-2] & empty[2:-1] & empty[3:]
    seven = four[:-3] & four[3:]
    filled = ~empty
    places = np.flatnonzero(filled[:-_LENGTH_BYTES] & seven[1:-1] & filled[_LENGTH_BYTES:])
    if not places.size or places[0]:
        return places[:0]
    leads = places[:-1] + _LENGTH_BYTES + window[places[:-1]] == places[1:]
    return places if leads.all() else places[: int(leads.argmin()) + 1]


def _step(cursor: Cursor, starts: NDArray[np.int64], done: int, place: str) -> int:
    """Read some lengths one by one and return how many strings are then found."""
    count = starts.size - 1
    content, at, last = cursor.content, cursor.at, cursor.end - _LENGTH_BYTES
    stop = min(done + _ONE_BY_ONE, count)
    for index in range(done, stop):
        if at > last:
            raise cursor.error(place, f"string {index} of {count} starts past the end of the file")
        starts[index] = at + _LENGTH_BYTES
        at += _LENGTH_BYTES + _U64.unpack_from(content, at)[0]
    cursor.at = at
    return stop
