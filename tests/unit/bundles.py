"""Small real bundles for tests of evidence, verification and reports."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.bundle_reader import BundleReader
from harness.checklist import Check, Checklists, Gate, Requirement
from harness.evidence import BundleWriter, Seal
from harness.gates import JudgeContext, Run, judge_run
from harness.keys import Signer, ephemeral_signer, read_public_key
from harness.manifest import UNLISTED
from harness.observation import Chunk, Exchange, Finding, Limits, Observation, Verdict
from harness.outcome import attempts_from
from harness.recompute import context_json
from harness.signing import sign_statement
from harness.statement import certificate, test_result
from harness.telemetry import Sample
from harness.trace import Collected, trace, trace_json
from harness.transcript import Recorded, observation_folder
from harness.verdicts import evidence_paths, verdicts_json

STREAM = b'event: token\ndata: {"t": "\xe4\xbd\xa0", "i": 0, "id": 7}\n\n'
NONCE = "f00dfeed" * 8
HOSTILE = "</script><script>alert(1)</script><b>&\"'"


def exchange(**changes: Any) -> Exchange:
    members: dict[str, Any] = {
        "method": "POST",
        "path": "/execute",
        "request_headers": (("content-type", "application/json"),),
        "request_body": b'{"prompt": "Once"}',
        "sent_ns": 1_000,
        "status": 200,
        "response_headers": (("content-type", "text/event-stream"),),
        "head_ns": 1_500,
        "chunks": (Chunk(2_000, STREAM[:30]), Chunk(3_000, STREAM[30:] + STREAM)),
        "closed_ns": 4_000,
    }
    return Exchange(**{**members, **changes})


def observation(
    check: str = "G1-HTTP-SSE", test: str = "test_streams", **changes: Any
) -> Observation:
    members: dict[str, Any] = {"exchanges": {"execute": (exchange(),)}, "facts": {"pid": 42}}
    return Observation(check=check, test=test, **{**members, **changes})


def _check(id_: str, test: str, **changes: Any) -> Check:
    members: dict[str, Any] = {
        "gate": 1,
        "text": f"what {id_} says is true",
        "requirements": ("R-1",),
        "subject": "engine",
        "where": ("any",),
        "launchers": ("process",),
        "engines": ("native",),
        "observations": {"any": (test,)},
    }
    return Check(id=id_, **{**members, **changes})


CHECKS = (
    _check("G1-HTTP-SSE", "test_streams", limits={"ttft_ms": 100.0}),
    _check("G1-HTTP-HEALTH", "test_health[<b>]"),
    _check("G1-KERNEL-EMBED", "test_kernel", where=("cuda",), observations={}),
)
CHECKLISTS = Checklists(
    gates=(Gate(1, "Foundation", "1", CHECKS, "aa" * 32),),
    requirements=(Requirement("R-1", "the engine answers", "a test"),),
    digests={"gate1.toml": "aa" * 32},
)


def has_chunks(seen: Observation, limits: Limits) -> Finding:
    """A judge: every recorded exchange has a body."""
    bodies = [len(e.body) for exchanges in seen.exchanges.values() for e in exchanges]
    verdict = Verdict.PASS if bodies and all(bodies) else Verdict.FAIL
    numbers = {"bytes": sum(bodies), "kib": sum(bodies) / 1024}
    return Finding(verdict, f"{sum(bodies)} bytes", numbers)


JUDGES = {check.id: has_chunks for check in CHECKS}

SEEN = (
    observation(),
    observation("G1-HTTP-HEALTH", "test_health[<b>]", facts={"said": HOSTILE}),
)


def seal_of(observations: tuple[Observation, ...], records: list[dict[str, Any]]) -> Seal:
    """What a plugin would seal after these observations."""
    tests = [Collected(f"suites/t.py::{o.test}", o.test, (o.check,)) for o in observations]
    tests.sort(key=lambda item: item.nodeid)
    now = datetime.now(UTC)
    context = JudgeContext(profile="cpu", ours=False, gate=1, judged_at=now, judges=JUDGES)
    run = Run(observations, attempts_from(records), trace(CHECKLISTS, tests))
    gate, results = judge_run(CHECKLISTS, run, context)
    paths = evidence_paths(
        Recorded(f"{observation_folder(o.check, o.test)}/{o.attempt}.observation.json", "", o)
        for o in observations
    )
    return Seal(
        metadata={
            "profile": "cpu",
            "gate": 1,
            "gate_files": dict(CHECKLISTS.digests),
            "judging": context_json(context),
            "engine": {
                "kind": "native",
                "launcher": "process",
                "ours": False,
                "version": "0.1.0",
                "digest": "ab" * 32,
            },
            "models": [{"name": f"tiny {HOSTILE}", "sha256": "cd" * 32, "bytes": 1234}],
            "nonce": NONCE,
            "started_at": now.isoformat(),
            "ended_at": now.isoformat(),
        },
        environment={"os": "Linux 6", "cpu": "a CPU", "ram_bytes": 1 << 33, "gpus": []},
        checks=verdicts_json(CHECKLISTS, gate, results, paths),
        trace={**trace_json(CHECKLISTS, tests), "errors": []},
    )


def sealed(
    root: Path,
    signer: Signer | None = None,
    run_id: str = "run-1",
    observations: tuple[Observation, ...] = SEEN,
    **changes: Any,
) -> Path:
    """A sealed bundle of these observations, all of whose attempts passed."""
    writer = BundleWriter.create(root, run_id)
    part = writer.part("main")
    records: list[dict[str, Any]] = []
    tests = [[f"suites/t.py::{o.test}", o.test, [o.check]] for o in observations]
    commitment = hashlib.sha256(NONCE.encode()).hexdigest()
    part.attempt({"event": "nonce_committed", "sha256": commitment})
    part.attempt({"event": "collected", "tests": tests, "errors": []})
    part.telemetry([Sample(n * 50_000_000, 99.5, 1 << 20) for n in range(20)])
    for seen in observations:
        record = {
            "event": "finished",
            "nodeid": f"suites/t.py::{seen.test}",
            "worker": "main",
            "test": seen.test,
            "checks": [seen.check],
            "attempt": seen.attempt,
            "outcome": "passed",
        }
        records.append(record)
        part.attempt(record)
        part.observation(seen, f"suites/t.py::{seen.test}")
    part.seed({"seed": 7})
    part.engine_log("engine", ['{"event": "ready"}'])
    part.attempt({"event": "nonce_opened", "nonce": NONCE})
    part.close()
    plan = seal_of(observations, records)
    members = {**vars(plan), **changes}
    return writer.seal(Seal(**members), signer or ephemeral_signer())


def reseal(path: Path, signer: Signer | None = None) -> None:
    """What a forger does: list and sign again whatever lies in the folder now."""
    from harness.evidence import list_files

    signer = signer or ephemeral_signer()
    roots = BundleReader(path).manifest.ledger
    for name in UNLISTED:
        (path / name).unlink()
    former = read_public_key(path / "public-key.pem").key_id
    for name in ("metadata.json", "report.html", "report.md"):
        shown = (path / name).read_bytes()
        (path / name).write_bytes(shown.replace(former.encode(), signer.public.key_id.encode()))
    (path / "public-key.pem").write_bytes(signer.public.pem)
    manifest = list_files(path, path.name, roots)
    bundle = BundleReader(path, manifest)
    (path / "manifest.json").write_bytes(manifest.to_bytes())
    (path / "SHA256SUMS").write_bytes(manifest.sums())
    first = sign_statement(test_result(manifest, bundle.metadata, bundle.checks), signer).to_bytes()
    (path / "attestation.test-result.sigstore.json").write_bytes(first)
    second = sign_statement(certificate(manifest, bundle.metadata, bundle.checks, first), signer)
    (path / "attestation.haikugate.sigstore.json").write_bytes(second.to_bytes())


def statuses(steps: Any) -> Mapping[int, str]:
    """The outcome of each step by number."""
    return {step.number: step.status.value for step in steps}
