"""What is installed here: this distribution's version and the digests of its files."""

import functools
import hashlib
from pathlib import Path

from harness.environment import harness_version
from harness.manifest import digest_file
from harness.observation import Json

_ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harness", "suites", "engine", "kernels")
"""What judges and what is judged by: the reference engine is part of the harness."""
_LEFT_OUT = {".pyc", ".nbi", ".nbc"}


def package_files(package: str) -> dict[str, str]:
    """SHA-256 of every file of a top-level package, by path below the installation."""
    root = _ROOT / package
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix not in _LEFT_OUT)
    return {path.relative_to(_ROOT).as_posix(): digest_file(path) for path in sorted(files)}


def tree_digest(files: dict[str, str]) -> str:
    """One digest of many files: SHA-256 over their `sha256sum` lines, sorted by path."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@functools.cache
def installation() -> dict[str, Json]:
    """`metadata.json`'s member `harness`: version, one digest, and the digest of every file."""
    files = {path: sha for package in PACKAGES for path, sha in package_files(package).items()}
    return {"version": harness_version(), "digest": tree_digest(files), "files": files}
