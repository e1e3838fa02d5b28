"""A bundle in one small file: `python -m harness.archive BUNDLE FILE.tar.xz`, and back, bounded.

The archive adds nothing to trust: what `verify` reads from it is held to the bundle's own manifest.
"""

import lzma
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import BundleError
from harness.manifest import MAX_FILE_BYTES, MAX_FILES, check_path, walk

SUFFIX = ".tar.xz"
MAX_BYTES = 4 * MAX_FILE_BYTES
"""Of all files together, unpacked."""


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
        with tarfile.open(path, "r:xz") as archive:
            roots = {_place(archive, member, folder) for member in _bounded(path, archive)}
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise BundleError(f"{path.name}: not an archive that can be read: {error}") from None
    if len(roots) != 1:
        raise BundleError(f"{path.name}: wanted one bundle, got {len(roots)}")
    return folder / roots.pop()


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
        while piece := source.read(1 << 20):
            file.write(piece)
    return name.partition("/")[0]


if __name__ == "__main__":
    print(pack(Path(sys.argv[1]), Path(sys.argv[2])))
