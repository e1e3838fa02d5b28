"""Judging a bundle again: every verdict from raw records, with the code that judged the run."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from harness.bundle_reader import BundleReader
from harness.checklist import Checklists
from harness.errors import BundleError, ChecklistError
from harness.gates import JudgeContext, Run, judge_run
from harness.observation import Json
from harness.outcome import attempts_from
from harness.trace import Collected, trace, trace_json
from harness.verdicts import evidence_paths, verdicts_json
from harness.waivers import waiver_from_json


def context_json(context: JudgeContext) -> dict[str, Json]:
    """`metadata.json`'s member `judging`: what the verdicts depend on besides the evidence."""
    return {
        "profile": context.profile,
        "launcher": context.launcher,
        "engine_kind": context.engine_kind,
        "ours": context.ours,
        "gate": context.gate,
        "areas": list(context.areas),
        "judged_at": context.judged_at.isoformat() if context.judged_at else None,
        "lower_gates": sorted(context.lower_gates),
        "waivers": [waiver.to_json() for waiver in context.waivers],
        "blockers": list(context.blockers),
    }


def context_from(judging: Mapping[str, Json]) -> JudgeContext:
    """The inverse of `context_json`; raises BundleError."""
    try:
        judged_at = judging["judged_at"]
        return JudgeContext(
            profile=judging["profile"],
            launcher=judging["launcher"],
            engine_kind=judging["engine_kind"],
            ours=judging["ours"],
            gate=judging["gate"],
            areas=tuple(judging["areas"]),
            judged_at=datetime.fromisoformat(judged_at) if judged_at else None,
            lower_gates=frozenset(judging["lower_gates"]),
            waivers=tuple(waiver_from_json(waiver) for waiver in judging["waivers"]),
            blockers=tuple(judging["blockers"]),
        )
    except (ChecklistError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"metadata.json: judging is malformed: {error!r}") from error


def collected_from(records: Iterable[Mapping[str, Json]]) -> tuple[list[Collected], list[str]]:
    """What the ledger's `collected` records list: each test once, sorted, and each error once."""
    found = [record for record in records if record.get("event") == "collected"]
    tests = {
        Collected(nodeid, test, tuple(checks))
        for record in found
        for nodeid, test, checks in record["tests"]
    }
    errors = dict.fromkeys(error for record in found for error in record["errors"])
    return sorted(tests, key=lambda item: item.nodeid), list(errors)


def recomputed_trace(bundle: BundleReader, checklists: Checklists) -> dict[str, Json]:
    """What trace.json must hold, from the ledger and the checklists alone."""
    tests, errors = collected_from(bundle.attempts())
    return {**trace_json(checklists, tests), "errors": errors}


def recomputed_checks(bundle: BundleReader, checklists: Checklists) -> dict[str, Json]:
    """What checks.json must hold, from transcripts, ledger and collected tests alone."""
    recorded = list(bundle.recorded())
    records = list(bundle.attempts())
    tests, errors = collected_from(records)
    run = Run(
        observations=[seen.observation for seen in recorded],
        attempts=attempts_from(records),
        trace=trace(checklists, tests, errors),
    )
    context = context_from(bundle.metadata.get("judging") or {})
    gate, results = judge_run(checklists, run, context)
    return verdicts_json(checklists, gate, results, evidence_paths(recorded))
