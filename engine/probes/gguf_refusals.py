"""Malformed GGUF files, class by class, and what the reader says of each."""

import resource
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from engine.errors import EngineError
from engine.gguf import GGUFFile
from engine.probe import Case, ProbeOptions

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_F32, _UNSUPPORTED, _UNKNOWN = 0, 10, 9999
_ALIGNMENT = 32


def _text(content: bytes) -> bytes:
    return _U64.pack(len(content)) + content


def _key(name: bytes, value: bytes = b"llama") -> bytes:
    return _text(name) + _U32.pack(8) + _text(value)


def _tensor(
    name: bytes = b"w", shape: tuple[int, ...] = (32,), kind: int = _F32, at: int = 0
) -> bytes:
    sizes = b"".join(map(_U64.pack, shape))
    return _text(name) + _U32.pack(len(shape)) + sizes + _U32.pack(kind) + _U64.pack(at)


def _file(
    keys: tuple[bytes, ...] = (_key(b"general.architecture"),),
    tensors: tuple[bytes, ...] = (_tensor(),),
    head: bytes = b"GGUF" + _U32.pack(3),
    n_data_bytes: int = 128,
) -> bytes:
    counts = _U64.pack(len(tensors)) + _U64.pack(len(keys))
    table = head + counts + b"".join(keys) + b"".join(tensors)
    return table + bytes(-len(table) % _ALIGNMENT) + bytes(n_data_bytes)


def _counts(n_tensors: int, n_keys: int) -> bytes:
    return b"GGUF" + _U32.pack(3) + _U64.pack(n_tensors) + _U64.pack(n_keys)


_HUGE = (1 << 63) - 1
CLASSES: dict[str, Callable[[], bytes]] = {
    "well-formed": _file,
    "empty": lambda: b"",
    "not-gguf": lambda: b"PK\x03\x04" + bytes(200),
    "version-1": lambda: _file(head=b"GGUF" + _U32.pack(1)),
    "version-99": lambda: _file(head=b"GGUF" + _U32.pack(99)),
    "big-endian": lambda: _file(head=b"GGUF" + struct.pack(">I", 3)),
    "cut-in-header": lambda: _file()[:12],
    "cut-in-metadata": lambda: _file()[:40],
    "cut-in-tensor-table": lambda: _file()[:90],
    "cut-in-tensor-data": lambda: _file(n_data_bytes=64),
    "huge-tensor-count": lambda: _counts(_HUGE, 0) + bytes(64),
    "huge-key-count": lambda: _counts(0, _HUGE) + bytes(64),
    "huge-string": lambda: _counts(0, 1) + _U64.pack(_HUGE) + bytes(64),
    "unknown-value-type": lambda: _file(keys=(_text(b"k") + _U32.pack(77) + bytes(8),)),
    "key-not-utf8": lambda: _file(keys=(_key(b"\xff\xfe"),)),
    "duplicate-key": lambda: _file(keys=(_key(b"k"), _key(b"k"))),
    "duplicate-tensor": lambda: _file(tensors=(_tensor(), _tensor())),
    "unknown-tensor-type": lambda: _file(tensors=(_tensor(kind=_UNKNOWN),)),
    "unsupported-tensor-type": lambda: _file(tensors=(_tensor(kind=_UNSUPPORTED),)),
    "too-many-dimensions": lambda: _file(tensors=(_tensor(shape=(1,) * 9),)),
    "zero-dimension": lambda: _file(tensors=(_tensor(shape=(0,)),)),
    "overflowing-shape": lambda: _file(tensors=(_tensor(shape=(1 << 32, 1 << 32, 4)),)),
    "offset-past-end": lambda: _file(tensors=(_tensor(at=1 << 40),)),
    "offset-misaligned": lambda: _file(tensors=(_tensor(at=7),)),
    "overlapping-tensors": lambda: _file(tensors=(_tensor(), _tensor(b"v"))),
    "bad-alignment": lambda: _file(
        keys=(_text(b"general.alignment") + _U32.pack(4) + _U32.pack(0),)
    ),
}
"""A file of each class; the first one is a control that must open."""


def cases(_options: ProbeOptions) -> list[Case]:
    """For each class: whether it opened, the error, its cost."""
    with tempfile.TemporaryDirectory(prefix="haikugate-") as folder:
        path = Path(folder) / "file.gguf"
        return [_case(path, name, make()) for name, make in CLASSES.items()]


def _case(path: Path, name: str, content: bytes) -> Case:
    path.write_bytes(content)
    tracemalloc.start()
    begun = time.perf_counter()
    error: Exception | None = None
    try:
        with GGUFFile.open(path):
            pass
    except Exception as caught:  # whatever comes is the number
        error = caught
    duration_ms = (time.perf_counter() - begun) * 1e3
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "class": name,
        "file_bytes": len(content),
        "opened": error is None,
        "error_type": None if error is None else type(error).__name__,
        "code": error.code if isinstance(error, EngineError) else None,
        "message": None if error is None else str(error),
        "duration_ms": duration_ms,
        "peak_bytes": peak_bytes,
        "max_rss_bytes": _max_rss_bytes(),
    }


def _max_rss_bytes() -> int:
    """The most resident memory of this process so far; Linux counts it in KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
