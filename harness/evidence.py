"""Writing a proof bundle: write-once files, one part per worker, sealed by a manifest and a key.

Until it is sealed a bundle holds a file INCOMPLETE, and `.parts/` with each worker's own ledgers.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.installation import installation
from harness.keys import Signer
from harness.ledger import (
    NAME,
    Entry,
    LedgerWriter,
    Root,
    check_chains,
    merge_ledgers,
    parse_ledger,
)
from harness.manifest import (
    CERTIFICATE,
    INCOMPLETE,
    MANIFEST,
    SCHEMA,
    SUMS,
    TEST_RESULT,
    check_path,
    list_files,
)
from harness.observation import Json, Observation
from harness.signing import sign_statement
from harness.statement import certificate, test_result
from harness.strict_json import dumps_file, dumps_line, loads_lines
from harness.telemetry import Sample, telemetry_table
from harness.timings import derive_timings
from harness.transcript import Attachment, Recorded, encode_observation, observation_folder

PARTS = ".parts"
LEDGER = "attempts.ndjson"
SEEDS = "seeds.ndjson"
ENGINE = "engine.ndjson"
TELEMETRY = "telemetry.ndjson"
_MARKER = b"This run was not finished: the bundle is not sealed, not signed, and proves nothing.\n"


def new_run_id() -> str:
    """HAIKUGATE_RUN_ID, or UTC time and eight random digits."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return os.environ.get("HAIKUGATE_RUN_ID") or f"{stamp}-{secrets.token_hex(4)}"


def derive_files(bundle: BundleReader) -> dict[str, bytes]:
    """The files that follow from transcripts, ledgers and verdicts."""
    from harness.junit import render_junit

    timings = dumps_line(derive_timings(bundle)) + b"\n"
    return {"timings.json": timings, "junit.xml": render_junit(bundle)}


def _checked_name(name: str, what: str) -> str:
    if not NAME.fullmatch(name):
        raise BundleError(f"{what} {name[:80]!r}: wanted 1–80 of A–Z a–z 0–9 . _ -")
    return name


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an operating system error into one line that names the file and the way out."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"cannot write evidence to {path}: {error.strerror}; free space or set"
            " HAIKUGATE_PROOF_DIR to a folder that can be written"
        ) from error


def write_once(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename; raises BundleError if the file is there already."""
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise BundleError(f"{path}: evidence is written once, and this file exists")
        try:
            temporary.write_bytes(content)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


class _Lines:
    """An append-only file of JSON lines, each whole when `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Sequence[Json]) -> None:
        with _writing(self.path), self.path.open("ab") as file:
            file.write(b"".join(dumps_line(record) + b"\n" for record in records))


class PartWriter:
    """What one worker writes: its ledger, its transcripts, its seeds, its engine's narration."""

    def __init__(self, path: Path, worker_id: str) -> None:
        self.path = path
        self.worker_id = _checked_name(worker_id, "worker")
        part = path / PARTS
        with _writing(part):
            part.mkdir(exist_ok=True)
            self._ledger = LedgerWriter(part / f"{worker_id}.{LEDGER}", path.name, worker_id)
        self._seeds = _Lines(part / f"{worker_id}.{SEEDS}")
        self._engine = _Lines(part / f"{worker_id}.{ENGINE}")
        self._telemetry = _Lines(part / f"{worker_id}.{TELEMETRY}")
        self._stored: dict[str, str] = {}

    def attempt(self, record: Mapping[str, Json]) -> None:
        """Chain one record: a test attempt, a retry, a rerun, an interruption, a commitment."""
        with _writing(self.path / LEDGER):
            self._ledger.append(dict(record))

    def observation(self, observation: Observation, nodeid: str) -> str:
        """Write an observation with its transcripts and chain its digest; returns its path."""
        folder = observation_folder(observation.check, observation.test)
        prefix = f"{folder}/{observation.attempt}"

        def store(attachment: Attachment) -> str:
            return self._store(f"{prefix}.{attachment.name}", attachment)

        record = Attachment("observation.json", encode_observation(observation, nodeid, store))
        path = f"{prefix}.{record.name}"
        write_once(self.path / path, record.content)
        self.attempt(
            {
                "kind": "observation",
                "check": observation.check,
                "test": observation.test,
                "attempt": observation.attempt,
                "path": path,
                "sha256": record.digest,
            }
        )
        return path

    def _store(self, path: str, attachment: Attachment) -> str:
        known = self._stored.get(attachment.digest)
        if known is None:
            write_once(self.path / path, attachment.content)
            known = self._stored[attachment.digest] = path
        return known

    def seed(self, record: Mapping[str, Json]) -> None:
        """Keep a seed or an opened challenge."""
        self._seeds.append([{"worker": self.worker_id, **record}])

    def engine_log(self, name: str, lines: Sequence[str]) -> None:
        """Keep an engine's narration, line by line."""
        self._engine.append([{"engine": name, "line": line} for line in lines])

    def telemetry(self, samples: Sequence[Sample]) -> None:
        """Keep samples of this worker's engine."""
        self._telemetry.append([asdict(sample) for sample in samples])

    def close(self) -> None:
        """End this worker's chain."""
        self._ledger.close()


@dataclass(frozen=True)
class Seal:
    """Everything the controller adds when a run is over; what follows from it is derived.

    `metadata` holds profile, gate, gate_files {name: sha256}, harness {version, digest, files},
    engine {kind, version, digest, command…}, models [{name, bytes, sha256, quant}], nonce,
    started_at, ended_at (ISO 8601, UTC), judging (see `harness.verdicts`); `checks` is what
    `harness.verdicts.verdicts_json` gives, `trace` what `harness.trace.trace_json` gives.
    """

    metadata: Mapping[str, Json]
    environment: Mapping[str, Json]
    checks: Mapping[str, Json]
    trace: Mapping[str, Json]
    attachments: Mapping[str, bytes] = field(default_factory=dict)


class BundleWriter:
    """A bundle being written: `create` it, give workers their parts, `seal` it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, run_id: str | None = None) -> "BundleWriter":
        """Start `root/<run_id>`; raises BundleError if that bundle exists."""
        run_id = _checked_name(run_id or new_run_id(), "run id")
        path = root / run_id
        with _writing(path):
            root.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise BundleError(f"{path}: a bundle of this name exists; choose another run id")
            path.mkdir()
            (path / PARTS).mkdir()
            (path / INCOMPLETE).write_bytes(_MARKER)
        return cls(path)

    @property
    def run_id(self) -> str:
        """The bundle's folder name, which its ledger and manifest repeat."""
        return self.path.name

    def part(self, worker_id: str) -> PartWriter:
        """The part of one worker (in xdist's worker process: `PartWriter(path, worker_id)`)."""
        return PartWriter(self.path, worker_id)

    def recorded(self) -> list[Recorded]:
        """Every observation written so far, by any worker."""
        return list(BundleReader(self.path, list_files(self.path, self.run_id, {})).recorded())

    def attempts(self) -> list[dict[str, Json]]:
        """The records that workers chained so far, as `BundleReader.attempts` will give them."""
        ledger = parse_ledger(merge_ledgers(self._chains()), LEDGER)
        return [e.record for e in ledger if e.record.get("kind") != "observation"]

    def _chains(self) -> list[tuple[Entry, ...]]:
        paths = sorted((self.path / PARTS).glob(f"*.{LEDGER}"))
        return [parse_ledger(path.read_bytes(), path.name) for path in paths]

    def seal(self, seal: Seal, signer: Signer) -> Path:
        """Merge the parts, render the reports, list and sign everything; returns the bundle."""
        from harness.plots import draw_plots  # matplotlib and Jinja cost start-up time
        from harness.report import render_reports

        if not (self.path / INCOMPLETE).exists():
            raise BundleError(f"{self.path}: this bundle is sealed already")
        roots = self._merge()
        metadata = self._metadata(seal, signer)
        self._write_files(seal, metadata, signer)
        with _writing(self.path):
            shutil.rmtree(self.path / PARTS)
        self._derive(roots, derive_files)
        self._derive(roots, draw_plots)
        self._derive(roots, render_reports)
        self._sign(metadata, seal.checks, roots, signer)
        (self.path / INCOMPLETE).unlink()
        return self.path

    def _metadata(self, seal: Seal, signer: Signer) -> dict[str, Json]:
        key = {"key_id": signer.public.key_id, "kind": signer.kind}
        return {
            "harness": installation(),
            **seal.metadata,
            "schema": SCHEMA,
            "run_id": self.run_id,
            "signer": key,
        }

    def _merge(self) -> dict[str, Root]:
        parts = self.path / PARTS
        chains = self._chains()
        roots: dict[str, Root] = {}
        for chain in chains:
            roots.update(check_chains(chain, self.run_id, LEDGER))
        write_once(self.path / LEDGER, merge_ledgers(chains))
        for name in (SEEDS, ENGINE):
            content = b"".join(path.read_bytes() for path in sorted(parts.glob(f"*.{name}")))
            write_once(self.path / name, content)
        return roots

    def _samples(self) -> list[Sample]:
        parts = sorted((self.path / PARTS).glob(f"*.{TELEMETRY}"))
        rows = [row for path in parts for row in loads_lines(path.read_bytes(), path.name)]
        return sorted((Sample(**row) for row in rows), key=lambda sample: sample.monotonic_ns)

    def _write_files(self, seal: Seal, metadata: Mapping[str, Json], signer: Signer) -> None:
        files: dict[str, Mapping[str, Json]] = {
            "metadata.json": metadata,
            "environment.json": seal.environment,
            "checks.json": seal.checks,
            "trace.json": seal.trace,
        }
        for name, value in files.items():
            write_once(self.path / name, dumps_file(value))
        write_once(self.path / "public-key.pem", signer.public.pem)
        if samples := self._samples():
            write_once(self.path / "telemetry.parquet", telemetry_table(samples))
        for name, content in seal.attachments.items():
            write_once(self.path / check_path(name), content)

    def _derive(
        self, roots: Mapping[str, Root], derive: Callable[[BundleReader], Mapping[str, bytes]]
    ) -> None:
        unsealed = BundleReader(self.path, list_files(self.path, self.run_id, roots))
        for name, content in derive(unsealed).items():
            write_once(self.path / name, content)

    def _sign(
        self,
        metadata: Mapping[str, Json],
        checks: Mapping[str, Json],
        roots: Mapping[str, Root],
        signer: Signer,
    ) -> None:
        manifest = list_files(self.path, self.run_id, roots)
        write_once(self.path / MANIFEST, manifest.to_bytes())
        write_once(self.path / SUMS, manifest.sums())
        first = sign_statement(test_result(manifest, metadata, checks), signer).to_bytes()
        write_once(self.path / TEST_RESULT, first)
        second = sign_statement(certificate(manifest, metadata, checks, first), signer)
        write_once(self.path / CERTIFICATE, second.to_bytes())
