"""Lower gates certified elsewhere: bundles that verify under a trusted key, for the same engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.gates import JudgeContext
from harness.keys import PublicKey
from harness.observation import Json
from harness.verification import VerifyOptions
from harness.verify import verify_bundle


def certified_gates(
    folder: Path,
    trusted: Sequence[PublicKey],
    context: JudgeContext,
    engine: Mapping[str, Json],
    models: Sequence[Json],
) -> frozenset[int]:
    """The gates below the one asked for that bundles in the folder certify.

    A bundle counts if it verifies under a trusted key, was certified without waivers, and is about
    the same profile, launcher, kind of engine, engine digest and model digests; it counts for the
    gates it judged itself. Raises BundleError if there is no folder.
    """
    if not folder.is_dir():
        raise BundleError(f"--gate-bundles {folder}: no such folder")
    found: set[int] = set()
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if any(_holds(path, key) for key in trusted):
            found |= _gates(BundleReader(path), context, engine, models)
    return frozenset(gate for gate in found if gate < context.gate)


def _holds(path: Path, key: PublicKey) -> bool:
    return verify_bundle(path, VerifyOptions(public_key=key, allow_outside=True)).holds


def _gates(
    bundle: BundleReader,
    context: JudgeContext,
    engine: Mapping[str, Json],
    models: Sequence[Json],
) -> set[int]:
    metadata, checks = bundle.metadata, bundle.checks
    same = (
        metadata["profile"] == context.profile
        and metadata["signer"]["kind"] != "ephemeral"
        and metadata["engine"]["launcher"] == context.launcher
        and metadata["engine"]["kind"] == context.engine_kind
        and engine["digest"] is not None
        and metadata["engine"]["digest"] == engine["digest"]
        and metadata["engine"]["command"] == engine["command"]
        and [m["sha256"] for m in metadata["models"]] == [m["sha256"] for m in models]
    )
    if not same or not checks["certified"] or checks["counts"]["waived"]:
        return set()
    return set(range(1, checks["gate"] + 1)) - set(metadata["judging"]["lower_gates"])
