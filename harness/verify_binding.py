"""What binds a bundle's claims to its evidence: nonce, times and models cannot be exchanged alone.

A bundle that is signed again may claim another nonce, a later date or another model. The ledger
commits to the nonce before the first request, the challenges are made from it, every record has its
time, and what was asked of the model names the file: all must agree with metadata.json.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.ledger import Entry
from harness.observation import Json

CLOCK_STEP: Final = timedelta(hours=1)
"""How far a machine's clock may be set while a run lasts."""

MODEL_CHECKS: Final = ("G4-HAIKU", "G4-GENUINE-")
"""The checks that are about the certified models and no others."""


def check_binding(bundle: BundleReader) -> None:
    """Raises BundleError where nonce, times or models differ between metadata and evidence."""
    check_nonce(bundle)
    _check_times(bundle)
    _check_models(bundle)


def check_nonce(bundle: BundleReader) -> None:
    """The nonce was committed to before the first observation, and opened after the last."""
    nonce = str(bundle.metadata.get("nonce"))
    committed = _only(bundle, "nonce_committed")
    if committed.record.get("sha256") != hashlib.sha256(nonce.encode()).hexdigest():
        raise BundleError("attempts.ndjson: commits to another nonce than that of metadata.json")
    opened = _only(bundle, "nonce_opened")
    if opened.record.get("nonce") != nonce:
        raise BundleError("attempts.ndjson: opens another nonce than that of metadata.json")
    seen = [entry.at_ns for entry in bundle.ledger if entry.record.get("kind") == "observation"]
    if seen and min(seen) < committed.at_ns:
        raise BundleError("attempts.ndjson: something was observed before the nonce was committed")
    if seen and max(seen) > opened.at_ns:
        raise BundleError("attempts.ndjson: something was observed after the nonce was opened")
    for path, facts in _facts(bundle):
        if facts.get("nonce", nonce) != nonce:
            raise BundleError(f"{path}: was asked with another nonce than that of metadata.json")


def asked_with(bundle: BundleReader, nonce: str) -> bool:
    """Whether a challenge was made from the nonce: one that is only named binds nothing."""
    return any(facts.get("nonce") == nonce for _, facts in _facts(bundle))


def _only(bundle: BundleReader, event: str) -> Entry:
    found = [entry for entry in bundle.ledger if entry.record.get("event") == event]
    if len(found) != 1:
        raise BundleError(f"attempts.ndjson: {len(found)} records {event}, wanted one")
    return found[0]


def _facts(bundle: BundleReader) -> Iterator[tuple[str, Mapping[str, Json]]]:
    for seen in bundle.recorded():
        if seen.observation.check.startswith(MODEL_CHECKS):
            yield seen.path, seen.observation.facts


def _check_times(bundle: BundleReader) -> None:
    try:
        started, ended = (_time(bundle, name) for name in ("started_at", "ended_at"))
    except (KeyError, TypeError, ValueError):
        raise BundleError("metadata.json: started_at or ended_at is not a time") from None
    for entry in bundle.ledger:
        _within(entry.at_ns / 1e9, started, ended, f"attempts.ndjson: {entry.worker} {entry.seq}")
    for path, facts in _facts(bundle):
        if "asked_at" in facts:
            _within(float(facts["asked_at"]), started, ended, path)


def _time(bundle: BundleReader, name: str) -> datetime:
    return datetime.fromisoformat(bundle.metadata[name]).astimezone(UTC)


def _within(at_s: float, started: datetime, ended: datetime, where: str) -> None:
    at = datetime.fromtimestamp(at_s, UTC)
    if not started - CLOCK_STEP <= at <= ended + CLOCK_STEP:
        raise BundleError(f"{where}: was written at {at:%Y-%m-%d %H:%M}, outside the run's times")


def _check_models(bundle: BundleReader) -> None:
    claimed = {model.get("sha256") for model in bundle.metadata.get("models") or ()}
    for path, facts in _facts(bundle):
        ran = facts.get("model_sha256")
        if ran is not None and ran not in claimed:
            raise BundleError(f"{path}: model {ran}, which is none of metadata.json's models")
