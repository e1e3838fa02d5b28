"""What is installed here: this distribution's version and the digests of its files."""

import functools
import hashlib
import os
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from harness.environment import harness_version
from harness.manifest import digest_file, is_compiled, source_files
from harness.observation import Json

_ROOT = Path(__file__).resolve().parent.parent
ENGINE_PACKAGES = ("engine", "kernels")
PACKAGES = ("harness", "suites", *ENGINE_PACKAGES)
"""What judges and what is judged by: the reference engine is part of the harness."""


def own_modules() -> dict[str, str]:
    """Variables by which Python runs this installation's modules: none of the folder it is run in.

    `python -m engine.cli` would otherwise run an `engine` that lies there, or first on PYTHONPATH.
    """
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join((str(_ROOT), *others))}


def package_files(package: str) -> dict[str, str]:
    """SHA-256 of every file of a top-level package, by path below the installation."""
    files = source_files(_ROOT / package)
    return {path.relative_to(_ROOT).as_posix(): digest_file(path) for path in files}


def wheel_files() -> dict[str, str]:
    """The wheel's own list: SHA-256 of its packages' files; empty for an editable installation."""
    try:
        installed = distribution("haikugate")
    except PackageNotFoundError:
        return {}
    if Path(str(installed.locate_file(""))).resolve() != _ROOT:
        return {}
    return {
        file.as_posix(): urlsafe_b64decode(file.hash.value + "=").hex()
        for file in installed.files or ()
        if file.parts[0] in PACKAGES and file.hash is not None and file.hash.mode == "sha256"
    }


def edited_files() -> list[str]:
    """Files of this installation that are not as its wheel lists them, added ones included."""
    listed = wheel_files()
    found: dict[str, str] = installation()["files"] if listed else {}
    names = sorted({name for name in listed if not is_compiled(Path(name))} | set(found))
    return [name for name in names if listed.get(name) != found.get(name)]


def tree_digest(files: dict[str, str]) -> str:
    """One digest of many files: SHA-256 over their `sha256sum` lines, sorted by path."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def engine_digest(files: Mapping[str, str]) -> str:
    """The digest of the reference engine whose files are among these, an installation's."""
    return tree_digest(
        {path: sha for path, sha in files.items() if path.partition("/")[0] in ENGINE_PACKAGES}
    )


@functools.cache
def installation() -> dict[str, Json]:
    """`metadata.json`'s member `harness`: version, one digest, and the digest of every file."""
    files = {path: sha for package in PACKAGES for path, sha in package_files(package).items()}
    return {"version": harness_version(), "digest": tree_digest(files), "files": files}
