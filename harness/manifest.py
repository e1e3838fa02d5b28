"""The manifest: every file of a bundle by path, role, bytes and SHA-256, and nothing else."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from harness.errors import BundleError
from harness.ledger import NAME, Root
from harness.observation import Json
from harness.strict_json import as_object, dumps_file, loads

SCHEMA = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
TEST_RESULT = "attestation.test-result.sigstore.json"
CERTIFICATE = "attestation.haikugate.sigstore.json"
INCOMPLETE = "INCOMPLETE"
UNLISTED = {MANIFEST, SUMS, TEST_RESULT, CERTIFICATE}
MAX_FILES = 200_000
MAX_FILE_BYTES = 512 * 1024 * 1024

ROLES = {
    "metadata.json": "metadata",
    "environment.json": "environment",
    "checks.json": "verdicts",
    "trace.json": "traceability",
    "attempts.ndjson": "ledger",
    "seeds.ndjson": "challenges",
    "timings.json": "timings",
    "telemetry.parquet": "telemetry",
    "engine.ndjson": "narration",
    "junit.xml": "junit",
    "report.md": "report",
    "report.html": "report",
    "README.md": "readme",
    "public-key.pem": "key",
    "transcripts": "transcript",
    "plots": "plot",
}


def role_of(path: str) -> str:
    """What a bundle file is for; `attachment` for what a suite added."""
    return ROLES.get(path) or ROLES.get(path.split("/", 1)[0], "attachment")


@dataclass(frozen=True)
class Listed:
    """One line of the manifest."""

    path: str
    role: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All files of a bundle, and where each worker's ledger ends."""

    run_id: str
    files: Mapping[str, Listed]
    ledger: Mapping[str, Root]

    def to_bytes(self) -> bytes:
        """manifest.json."""
        return dumps_file(
            {
                "schema": SCHEMA,
                "run_id": self.run_id,
                "files": [asdict(self.files[path]) for path in sorted(self.files)],
                "ledger": {worker: asdict(root) for worker, root in self.ledger.items()},
            }
        )

    def sums(self) -> bytes:
        """SHA256SUMS, as `sha256sum -c` reads it."""
        return "".join(
            f"{self.files[path].sha256}  {path}\n" for path in sorted(self.files)
        ).encode()


def check_path(path: str) -> str:
    """The path, if it stays inside the bundle and has one spelling; raises BundleError."""
    parts = path.split("/")
    clean = path.isprintable() and "\\" not in path and len(path) <= 1024
    if not clean or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise BundleError(f"{path!r:.120}: a path that leaves the bundle or has no single spelling")
    return path


def parse_manifest(content: bytes) -> Manifest:
    """Read manifest.json; raises BundleError for anything but the one spelling of it."""
    members = as_object(loads(content, MANIFEST), MANIFEST)
    try:
        listed = [_listed(line) for line in members["files"]]
        manifest = Manifest(
            run_id=members["run_id"],
            files={line.path: line for line in listed},
            ledger={worker: Root(**root) for worker, root in members["ledger"].items()},
        )
        named = NAME.fullmatch(manifest.run_id) is not None
        same = manifest.to_bytes() == content
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{MANIFEST}: malformed: {error!r}") from error
    if not named:
        raise BundleError(f"{MANIFEST}: run id {manifest.run_id!a:.100}: not a run's name")
    if not same:
        raise BundleError(f"{MANIFEST}: not spelled as haikugate writes it, or of another schema")
    return manifest


def _listed(line: Any) -> Listed:
    listed = Listed(**line)
    check_path(listed.path)
    if not isinstance(listed.bytes, int) or not isinstance(listed.sha256, str):
        raise TypeError(f"{listed.path}: bytes and sha256")
    return listed


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below the root, sorted; raises BundleError at a symlink or any special file."""
    pending = [root]
    found: list[tuple[str, os.stat_result]] = []
    while pending:
        for entry in sorted(pending.pop().iterdir()):
            path = entry.relative_to(root).as_posix()
            status = entry.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending.append(entry)
            elif stat.S_ISREG(status.st_mode):
                found.append((path, status))
            else:
                raise BundleError(f"{path!a}: a link or special file has no place in a bundle")
            if len(found) + len(pending) > MAX_FILES:
                raise BundleError(f"{root.name}: more than {MAX_FILES} files")
    yield from sorted(found)


_COMPILED = frozenset({".pyc", ".pyo", ".nbi", ".nbc"})


def is_compiled(path: PurePath) -> bool:
    """Whether a file below a tree is a cache that Python, pytest or Numba made of its sources."""
    return "__pycache__" in path.parts or path.suffix in _COMPILED


def source_files(tree: Path) -> list[Path]:
    """The files below a folder, sorted, without what was compiled of them."""
    found = (path for path in tree.rglob("*") if not is_compiled(path.relative_to(tree)))
    return sorted(path for path in found if path.is_file())


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(root: Path, run_id: str, ledger: Mapping[str, Root]) -> Manifest:
    """The manifest of what lies in the folder now."""
    files = {
        path: Listed(path, role_of(path), status.st_size, digest_file(root / path))
        for path, status in walk(root)
        if path not in UNLISTED and path != INCOMPLETE
    }
    return Manifest(run_id, files, ledger)


def descriptor(path: str, digest: str) -> dict[str, Json]:
    """An in-toto ResourceDescriptor."""
    return {"name": path, "digest": {"sha256": digest}}
