"""The two in-toto Statements of a bundle: the standard test result, and our own certificate.

The second holds what the first cannot say (checks not run, waivers, challenges, the ledger's roots,
the profile) and lists the first file's digest, so that neither can be dropped or exchanged.
Sources: in-toto attestation spec v1 `statement.md`, `predicates/test-result.md` v0.1.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict

from harness.manifest import MANIFEST, TEST_RESULT, Manifest, descriptor
from harness.observation import Json, Verdict
from harness.report_annex import calibrations_used

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
CERTIFICATE_TYPE = "urn:haikugate:gate-certificate:v1"


def statement(subjects: list[Json], predicate_type: str, predicate: Json) -> dict[str, Json]:
    """An in-toto Statement v1."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def subjects_of(manifest: Manifest, metadata: Mapping[str, Json]) -> list[Json]:
    """What is attested: the manifest, the report, the engine that ran, and the model files."""
    subjects = [descriptor(MANIFEST, hashlib.sha256(manifest.to_bytes()).hexdigest())]
    if "report.html" in manifest.files:
        subjects.append(descriptor("report.html", manifest.files["report.html"].sha256))
    engine = metadata.get("engine") or {}
    if engine.get("digest"):
        digest = str(engine["digest"]).removeprefix("sha256:")
        subjects.append(descriptor(f"engine:{engine.get('kind', 'unknown')}", digest))
    models = metadata.get("models") or []
    named = [descriptor(f"model:{m['name']}", m["sha256"]) for m in models if m.get("sha256")]
    return subjects + named


def _ids(checks: Mapping[str, Json], *verdicts: Verdict) -> list[str]:
    wanted = {verdict.value for verdict in verdicts}
    return sorted(check["id"] for check in checks["checks"] if check["verdict"] in wanted)


def test_result(
    manifest: Manifest, metadata: Mapping[str, Json], checks: Mapping[str, Json]
) -> dict[str, Json]:
    """The standard predicate: PASSED only for a certified gate, check ids by outcome."""
    configuration = [
        descriptor(f"checklist:{name}", digest)
        for name, digest in sorted((metadata.get("gate_files") or {}).items())
    ]
    harness = metadata.get("harness") or {}
    if harness.get("digest"):
        configuration.append(descriptor("harness", harness["digest"]))
    predicate = {
        "result": "PASSED" if checks["certified"] else "FAILED",
        "configuration": configuration,
        "passedTests": _ids(checks, Verdict.PASS),
        "warnedTests": _ids(checks, Verdict.WAIVED),
        "failedTests": _ids(checks, Verdict.FAIL, Verdict.ERROR, Verdict.NOT_RUN),
    }
    return statement(subjects_of(manifest, metadata), TEST_RESULT_TYPE, predicate)


def certificate(
    manifest: Manifest,
    metadata: Mapping[str, Json],
    checks: Mapping[str, Json],
    first_attestation: bytes,
) -> dict[str, Json]:
    """Our own predicate, over the same subjects and the first attestation's file."""
    first = descriptor(TEST_RESULT, hashlib.sha256(first_attestation).hexdigest())
    predicate = {
        "runId": manifest.run_id,
        "gate": checks["gate"],
        "profile": metadata.get("profile"),
        "certified": checks["certified"],
        "verdicts": {verdict.value: _ids(checks, verdict) for verdict in Verdict},
        "ledger": {worker: asdict(root) for worker, root in manifest.ledger.items()},
        "nonce": metadata.get("nonce"),
        "calibration": [
            {"sha256": sha256, "custom": custom} for sha256, custom in calibrations_used(checks)
        ],
        "signer": metadata.get("signer"),
        "startedAt": metadata.get("started_at"),
        "endedAt": metadata.get("ended_at"),
    }
    return statement([*subjects_of(manifest, metadata), first], CERTIFICATE_TYPE, predicate)
