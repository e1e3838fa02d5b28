"""Small real bundles for tests of evidence, verification and reports."""

from pathlib import Path
from typing import Any

from harness.evidence import BundleWriter, Seal
from harness.keys import Signer, ephemeral_signer
from harness.observation import Chunk, Exchange, Observation

STREAM = b'event: token\ndata: {"t": "\xe4\xbd\xa0", "i": 0, "id": 7}\n\n'


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
        "chunks": (Chunk(2_000, STREAM[:30]), Chunk(3_000, STREAM[30:])),
        "closed_ns": 4_000,
    }
    return Exchange(**{**members, **changes})


def observation(
    check: str = "G1-HTTP-SSE", test: str = "test_streams", **changes: Any
) -> Observation:
    members: dict[str, Any] = {"exchanges": {"execute": (exchange(),)}, "facts": {"pid": 42}}
    return Observation(check=check, test=test, **{**members, **changes})


def sealed(root: Path, signer: Signer | None = None, run_id: str = "run-1") -> Path:
    writer = BundleWriter.create(root, run_id)
    part = writer.part("main")
    part.attempt({"kind": "attempt", "test": "test_streams", "attempt": 1, "outcome": "passed"})
    part.observation(observation(), "suites/test_http.py::test_streams")
    part.seed({"seed": 7})
    part.engine_log("engine", ['{"event": "ready"}'])
    part.close()
    checks = {"gate": 1, "certified": False, "checks": [{"id": "G1-HTTP-SSE", "verdict": "pass"}]}
    metadata = {"profile": "cpu", "engine": {"kind": "native", "digest": "ab" * 32}, "models": []}
    seal = Seal(metadata=metadata, environment={}, checks=checks, trace={})
    return writer.seal(seal, signer or ephemeral_signer())
