"""The end of a run: read the evidence back, judge it, seal and sign the bundle."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.checklist import Checklists
from harness.environment import environment_snapshot
from harness.evidence import BundleWriter, Seal
from harness.gates import JudgeContext, Run, judge_run
from harness.installation import edited_files, installation
from harness.keys import Signer
from harness.models import unpublished
from harness.observation import Json
from harness.outcome import CheckResult, GateResult, attempts_from
from harness.recompute import context_json
from harness.session import GateSession
from harness.trace import Collected, trace, trace_json
from harness.verdicts import evidence_paths, verdicts_json


@dataclass(frozen=True)
class Verdicts:
    """A finished run: its results and its sealed bundle."""

    gate: GateResult
    checks: tuple[CheckResult, ...]
    context: JudgeContext
    bundle: Path
    signer_kind: str


def finish(session: GateSession, signer: Signer) -> Verdicts:
    """Judge what the bundle's parts hold, and seal it; raises BundleError."""
    session.record("nonce_opened", nonce=session.nonce.value)
    session.close()
    assert session.bundle is not None
    writer = BundleWriter(session.bundle)
    records = writer.attempts()
    collected, errors = _collected(records)
    models = session.under_test.models()
    context = replace(
        session.context,
        judged_at=datetime.now(UTC),
        blockers=(
            *session.context.blockers,
            *dict.fromkeys(session.blockers),
            *_empty(collected),
            *_edited(),
            *unpublished(session.context.profile, models),
        ),
    )
    recorded = writer.recorded()
    run = Run(
        observations=[seen.observation for seen in recorded],
        attempts=attempts_from(records),
        trace=trace(session.checklists, collected, errors),
    )
    gate, checks = judge_run(session.checklists, run, context)
    seal = Seal(
        metadata=_metadata(session, context, models),
        environment=environment_snapshot(),
        checks=verdicts_json(session.checklists, gate, checks, evidence_paths(recorded)),
        trace={**trace_json(session.checklists, collected), "errors": list(errors)},
    )
    bundle = writer.seal(seal, signer)
    return Verdicts(gate, checks, context, bundle, signer.kind)


def _empty(collected: Sequence[Collected]) -> tuple[str, ...]:
    return () if collected else ("no gate test was collected here: an empty gate fails",)


def _edited() -> tuple[str, ...]:
    return tuple(f"{name} is not as the installed wheel lists it" for name in edited_files()[:3])


def _collected(records: Sequence[dict[str, Json]]) -> tuple[list[Collected], tuple[str, ...]]:
    """What the workers collected: each test once, sorted, and every error of collection."""
    found = [record for record in records if record.get("event") == "collected"]
    tests = {
        Collected(nodeid, test, tuple(checks))
        for record in found
        for nodeid, test, checks in record["tests"]
    }
    errors = dict.fromkeys(error for record in found for error in record["errors"])
    return sorted(tests, key=lambda item: item.nodeid), tuple(errors)


def _metadata(session: GateSession, context: JudgeContext, models: list[Json]) -> dict[str, Json]:
    checklists: Checklists = session.checklists
    return {
        "profile": context.profile,
        "gate": context.gate,
        "judging": context_json(context),
        "gate_files": dict(checklists.digests),
        "harness": installation(),
        "engine": session.under_test.identity(),
        "models": models,
        "companions": list(session.companions),
        "nonce": session.nonce.value,
        "nonce_commitment": hashlib.sha256(session.nonce.value.encode()).hexdigest(),
        "started_at": session.started_at.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
    }
