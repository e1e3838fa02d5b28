"""A bundle in one small file: `python -m harness.archive BUNDLE FILE.tar.xz`, and back, bounded.

The archive adds nothing to trust: what `verify` reads from it is held to the bundle's own manifest.
"""

import io
import lzma
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.errors import BundleError
from harness.manifest import MAX_FILE_BYTES, MAX_FILES, check_path, walk

SUFFIX = ".tar.xz"
MAX_BYTES = 4 * MAX_FILE_BYTES
"""Of all files together, unpacked."""
MAX_ARCHIVE_BYTES = MAX_BYTES + 4096 * MAX_FILES
PIECE_BYTES = 1 << 20
"""What is read at once. A member's header that wants more is not one that `pack` wrote."""
MEMORY_BYTES = 256 << 20
"""Of the decompressor; `pack` needs a quarter of it."""


def pack(bundle: Path, out: Path) -> int:
    """Write the bundle's files, sorted and without times or owners; returns the archive's bytes."""
    with (
        lzma.open(out, "wb", preset=lzma.PRESET_EXTREME | 9) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for path, status in walk(bundle):
            member = tarfile.TarInfo(f"{bundle.name}/{path}")
            member.size = status.st_size
            with (bundle / path).open("rb") as file:
                archive.addfile(member, file)
    return out.stat().st_size


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The bundle's folder: `path` itself, or what its archive holds, gone again afterwards.

    Raises BundleError for an archive with links, strange names, or more than a bundle may hold.
    """
    if not path.name.endswith(SUFFIX):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="haikugate-") as folder:
        yield _unpack(path, Path(folder))


def _unpack(path: Path, folder: Path) -> Path:
    try:
        with (
            path.open("rb") as packed,
            tarfile.open(fileobj=_Decompressed(packed, path.name), mode="r:") as archive,
        ):
            roots = {_place(archive, member, folder) for member in _bounded(path, archive)}
    except _UNREADABLE as error:
        raise BundleError(f"{path.name}: not an archive that can be read: {error}") from None
    if len(roots) != 1:
        raise BundleError(f"{path.name}: wanted one bundle, got {len(roots)}")
    return folder / roots.pop()


_UNREADABLE = (tarfile.TarError, lzma.LZMAError, ValueError, RecursionError, OSError)
"""What tarfile raises for hostile headers is not always its own."""


class _Decompressed(io.RawIOBase):
    """The tar file in an xz file, forwards only, with bounded memory and a bounded length."""

    def __init__(self, packed: BinaryIO, name: str) -> None:
        self._packed, self._name = packed, name
        self._xz = lzma.LZMADecompressor(memlimit=MEMORY_BYTES)
        self._at = 0
        self._ended = False

    def seekable(self) -> bool:
        """Tarfile seeks from member to member."""
        return True

    def tell(self) -> int:
        """Bytes decompressed so far."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Forwards only; raises OSError otherwise."""
        if whence != io.SEEK_SET or offset < self._at:
            raise OSError("members overlap")
        while self._at < offset and self.read(min(PIECE_BYTES, offset - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer only at the end; raises BundleError for more than a bundle needs."""
        if not 0 <= size <= PIECE_BYTES:
            raise BundleError(f"{self._name}: a member's header is larger than a bundle's are")
        found = b""
        while len(found) < size and not self._xz.eof:
            fed = self._packed.read(PIECE_BYTES) if self._xz.needs_input else b""
            if self._xz.needs_input and not fed:
                raise OSError("it is cut off")
            found += self._xz.decompress(fed, size - len(found))
        if size and not found and self._ended:
            raise OSError("it is cut off")
        self._ended = len(found) < size
        self._at += len(found)
        if self._at > MAX_ARCHIVE_BYTES:
            raise BundleError(f"{self._name}: holds more than a bundle may")
        return found


def _bounded(path: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    n_bytes = 0
    for number, member in enumerate(archive, start=1):
        n_bytes += max(0, member.size)
        if number > MAX_FILES or n_bytes > MAX_BYTES:
            raise BundleError(f"{path.name}: holds more than a bundle may")
        yield member


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Write one member below the folder; returns the first part of its name."""
    name = check_path(member.name)
    source = archive.extractfile(member) if member.isreg() else None
    if source is None or "/" not in name:
        raise BundleError(f"{name!a}: has no place in a bundle's archive")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while piece := source.read(PIECE_BYTES):
            file.write(piece)
    return name.partition("/")[0]


if __name__ == "__main__":
    print(pack(Path(sys.argv[1]), Path(sys.argv[2])))
