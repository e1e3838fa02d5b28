"""Reading a proof bundle: only listed files, only as long and with the digest the manifest says."""

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from harness.errors import BundleError
from harness.ledger import Entry, parse_ledger
from harness.manifest import (
    INCOMPLETE,
    MANIFEST,
    MAX_FILE_BYTES,
    Manifest,
    check_path,
    parse_manifest,
)
from harness.observation import Json, Observation
from harness.strict_json import MAX_BYTES, as_object, loads, loads_lines
from harness.transcript import Recorded, decode_observation

OBSERVATION_SUFFIX = ".observation.json"


def read_bounded(root: Path, path: str, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
    """One regular file of the bundle, never through a link; raises BundleError naming it."""
    target = root / check_path(path)
    try:
        if target.is_symlink() or not target.is_file():
            raise BundleError(f"{path}: missing, or not a regular file")
        with os.fdopen(os.open(target, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > limit_bytes:
        raise BundleError(f"{path}: larger than {limit_bytes} bytes")
    return content


class BundleReader:
    """A bundle; every read checks the file against the manifest (its own, or the one given)."""

    def __init__(self, path: Path, manifest: Manifest | None = None) -> None:
        self.path = Path(path)
        if not os.path.isdir(self.path):  # Path.is_dir raises where it may not look
            raise BundleError(f"{self.path}: not a bundle: no such folder")
        if manifest is not None:
            self.manifest = manifest

    @property
    def incomplete(self) -> bool:
        """Whether the run that wrote it never finished."""
        return os.path.lexists(self.path / INCOMPLETE) or not os.path.lexists(self.path / MANIFEST)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, parsed."""
        if self.incomplete:
            raise BundleError(
                f"{self.path.name}: INCOMPLETE: the run did not finish; it proves nothing"
            )
        return parse_manifest(read_bounded(self.path, MANIFEST, MAX_BYTES))

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.manifest.run_id

    def read(self, path: str) -> bytes:
        """A listed file's content; raises BundleError if it is not listed or differs."""
        listed = self.manifest.files.get(path)
        if listed is None:
            raise BundleError(f"{path!a:.200}: not listed in {MANIFEST}")
        content = read_bounded(self.path, path)
        got = hashlib.sha256(content).hexdigest()
        if got != listed.sha256:
            raise BundleError(f"{path}: wanted SHA-256 {listed.sha256}, got {got}")
        return content

    def has(self, path: str) -> bool:
        """Whether the manifest lists the file."""
        return path in self.manifest.files

    def json(self, path: str) -> dict[str, Json]:
        """A listed file that holds one JSON object."""
        return as_object(loads(self.read(path), path), path)

    @cached_property
    def metadata(self) -> dict[str, Json]:
        """metadata.json."""
        return self.json("metadata.json")

    @cached_property
    def environment(self) -> dict[str, Json]:
        """environment.json."""
        return self.json("environment.json")

    @cached_property
    def checks(self) -> dict[str, Json]:
        """checks.json."""
        return self.json("checks.json")

    @cached_property
    def trace(self) -> dict[str, Json]:
        """trace.json."""
        return self.json("trace.json")

    @cached_property
    def timings(self) -> dict[str, Json]:
        """timings.json."""
        return self.json("timings.json")

    @cached_property
    def ledger(self) -> tuple[Entry, ...]:
        """Every ledger line, observations' digests included."""
        return parse_ledger(self.read("attempts.ndjson"), "attempts.ndjson")

    def attempts(self) -> Iterator[dict[str, Json]]:
        """The records that workers chained by `attempt`, in order."""
        for entry in self.ledger:
            if entry.record.get("kind") != "observation":
                yield entry.record

    def seeds(self) -> Iterator[Json]:
        """seeds.ndjson."""
        return loads_lines(self.read("seeds.ndjson"), "seeds.ndjson")

    def recorded(self) -> Iterator[Recorded]:
        """Every observation with its path and node id, by path."""
        for path in sorted(self.manifest.files):
            if path.startswith("transcripts/") and path.endswith(OBSERVATION_SUFFIX):
                yield decode_observation(path, self.read)

    def observations(self) -> Iterator[Observation]:
        """Every observation, by path."""
        for recorded in self.recorded():
            yield recorded.observation
