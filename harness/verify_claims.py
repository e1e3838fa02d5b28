"""Steps 4 to 10 of verify: what the bundle claims, worked out again."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from harness.errors import BundleError, HaikugateError, LaunchError, ModelFileError
from harness.installation import edited_files
from harness.observation import Exchange, Json
from harness.recompute import context_from, recomputed_checks, recomputed_trace
from harness.strict_json import dumps_line
from harness.timings import derive_timings, exchange_files
from harness.verification import MAX_AGE_DAYS, Case, NotChecked, Step
from harness.verify_binding import asked_with, check_binding
from harness.verify_files import signing_key
from harness.verify_metadata import (
    check_blockers,
    check_judged,
    check_model_names,
    check_published,
    check_waivers,
)


def _other_version(case: Case) -> str:
    here = str(case.options.installed["version"])
    if case.made_by == here:
        return f"made by other files of haikugate {here} than those installed here"
    return f"made by haikugate {case.made_by}, this is {here}"


def check_checklist(case: Case) -> str:
    """Step 4: the checklists are those installed here, and every check in scope has a verdict."""
    installed = dict(case.options.checklists.digests)
    recorded = case.bundle.metadata.get("gate_files")
    if recorded != installed and not case.same_version:
        raise NotChecked(f"other checklists: {_other_version(case)}")
    if recorded != installed:
        odd = next(name for name in installed if (recorded or {}).get(name) != installed[name])
        raise BundleError(f"metadata.json: {odd} is not the checklist installed here")
    context = context_from(case.bundle.metadata.get("judging") or {})
    if any(waiver.key_id == signing_key(case).key_id for waiver in context.waivers):
        raise BundleError("metadata.json: a waiver is signed by the bundle's own key")
    wanted = [check.id for check in context.in_scope(case.options.checklists)]
    got = [check["id"] for check in case.bundle.checks["checks"]]
    if wanted != got:
        strange = sorted(set(wanted) ^ set(got)) or ["their order"]
        raise BundleError(f"checks.json: not the checks in scope: {', '.join(strange[:3])}")
    said = f"{len(wanted)} checks of {case.bundle.checks['scope']}, all there"
    check_waivers(case.bundle.metadata, case.options.checklists)
    if context.lower_gates or context.waivers:
        gates = ", ".join(str(gate) for gate in sorted(context.lower_gates)) or "none"
        said += (
            f", but they rest on what lies outside: gates from other bundles: {gates},"
            f" waivers: {len(context.waivers)}; verify those with their own keys"
        )
        if not case.options.allow_outside:
            raise NotChecked(f"{said} (--allow-outside accepts them)")
    return said


def check_verdicts(case: Case) -> str:
    """Step 5: every verdict, message and number follows from the raw records."""
    if case.bundle.metadata.get("gate_files") != dict(case.options.checklists.digests):
        raise NotChecked(f"other checklists: {_other_version(case)}")
    check_blockers(case.bundle.metadata, case.bundle.attempts())
    if recomputed_trace(case.bundle, case.options.checklists) != case.bundle.trace:
        raise _differs(case, "trace.json: differs from what the ledger and the checklists give")
    wanted, got = recomputed_checks(case.bundle, case.options.checklists), case.bundle.checks
    if _same(wanted, got):
        return f"{len(wanted['checks'])} verdicts recomputed: {wanted['verdict_line']}"
    raise _differs(case, f"checks.json: {_difference(wanted, got)}")


def _differs(case: Case, message: str) -> HaikugateError:
    """Forged, or judged by other rules: where another harness is accepted, nobody here can tell."""
    if case.options.other_harness and not case.same_version:
        return NotChecked(f"{message}, and it was {_other_version(case)}")
    return BundleError(message)


def _same(wanted: Any, got: Any) -> bool:
    """Equal, fractions to nine digits: other processors and Pythons end exp and sum otherwise."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        return wanted.keys() == got.keys() and all(_same(wanted[k], got[k]) for k in wanted)
    if isinstance(wanted, list | tuple) and isinstance(got, list | tuple):
        return len(wanted) == len(got) and all(map(_same, wanted, got))
    if isinstance(wanted, float) and isinstance(got, float | int):
        return math.isclose(wanted, got, rel_tol=1e-9)
    return bool(wanted == got)


def _difference(wanted: Mapping[str, Json], got: Mapping[str, Json]) -> str:
    claimed = {check.get("id"): check for check in got.get("checks", [])}
    for check in wanted["checks"]:
        claim = claimed.get(check["id"], {})
        if claim.get("verdict") != check["verdict"]:
            return f"{check['id']}: wanted {check['verdict']}, got {claim.get('verdict')}"
        if not _same(check, claim):
            odd = [name for name in check if not _same(check[name], claim.get(name))]
            return f"{check['id']}: {', '.join(odd)} differs from what the records give"
    odd = [name for name in wanted if not _same(wanted[name], got.get(name))] + sorted(
        set(got) - set(wanted)
    )
    return f"{', '.join(odd)}: differs from what the records give"


def _out_of_order(exchange: Exchange) -> bool:
    moments = [
        exchange.sent_ns,
        exchange.head_ns,
        *(chunk.arrival_ns for chunk in exchange.chunks),
        exchange.closed_ns,
    ]
    known = [moment for moment in moments if moment is not None]
    return any(after < before for before, after in pairwise(known))


def check_timings(case: Case) -> str:
    """Step 6: clocks never run backwards; counts, UTF-8 and latencies follow from the bytes."""
    for path, exchanges in exchange_files(case.bundle):
        if any(_out_of_order(exchange) for exchange in exchanges):
            raise BundleError(f"{path}: a clock runs backwards")
    timings = derive_timings(case.bundle)
    if dumps_line(timings) + b"\n" != case.bundle.read("timings.json"):
        if not case.same_version:
            raise NotChecked(_other_version(case))
        raise BundleError("timings.json: differs from what the transcripts give")
    streams = timings["streams"]
    return f"{len(streams)} streams, {sum(stream['tokens'] for stream in streams)} tokens"


def check_report(case: Case) -> str:
    """Step 7: the reports, rendered again, have the same bytes, and show what was judged."""
    from harness.junit import render_junit
    from harness.report import render_reports

    check_judged(case.bundle.metadata)
    check_model_names(case.bundle.metadata)
    check_published(case.bundle.metadata, case.bundle.checks)
    if not case.same_version:
        raise NotChecked(_other_version(case))
    rendered = render_reports(case.bundle) | {"junit.xml": render_junit(case.bundle)}
    for name, content in rendered.items():
        if case.bundle.read(name) != content:
            raise BundleError(f"{name}: differs from the report that this bundle gives")
    return f"{', '.join(sorted(rendered))} rendered again, byte for byte"


def check_freshness(case: Case) -> str:
    """Step 8: the nonce, the reviewer's if given, the times and the models are those of the run.

    The bundle is not from the future, and not too old.
    """
    metadata, options = case.bundle.metadata, case.options
    if options.nonce is not None and metadata.get("nonce") != options.nonce:
        raise BundleError("metadata.json: the run did not use the nonce you gave it")
    try:
        ended = datetime.fromisoformat(metadata["ended_at"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        raise BundleError("metadata.json: ended_at is not a time") from None
    check_binding(case.bundle)
    age = options.now - ended
    if age < timedelta(hours=-1):
        raise BundleError(f"metadata.json: ended_at {ended:%Y-%m-%d} lies in the future")
    if age > timedelta(days=MAX_AGE_DAYS) and not options.allow_expired:
        raise BundleError(
            f"expired: {age.days} days old, at most {MAX_AGE_DAYS} (--allow-expired accepts it)"
        )
    said = f"{max(age.days, 0)} days old"
    if options.nonce is None:
        return f"{said}, nonce not compared (--nonce)"
    if not asked_with(case.bundle, options.nonce):
        raise NotChecked(f"{said}; it names your nonce, but no challenge in it was made from it")
    return f"{said}, your nonce"


def check_replay(case: Case) -> str:
    """Step 9: with `--replay`, the reference engine re-scores the recorded tokens."""
    if case.options.replay is None:
        raise NotChecked("needs the reference engine and the model file; ask with --replay")
    try:
        return case.options.replay(case.bundle)
    except (LaunchError, ModelFileError) as error:
        raise NotChecked(f"the reference engine cannot be asked here: {error}") from None


def check_installation(case: Case) -> str:
    """Step 10: harness, suites and reference engine that made it are those installed here."""
    if not case.same_version:
        raise NotChecked(_other_version(case))
    if edited := edited_files():
        raise BundleError(
            f"{edited[0]}: this installation itself is not as its wheel lists it ({len(edited)}"
            " differ): install haikugate again"
        )
    made_by, here = case.bundle.metadata["harness"], case.options.installed
    if made_by.get("files") != here["files"]:
        recorded = made_by.get("files") or {}
        names = sorted(set(recorded) | set(here["files"]))
        odd = [name for name in names if recorded.get(name) != here["files"].get(name)]
        raise BundleError(
            f"{odd[0]}: not the file installed here ({len(odd)} differ), version"
            f" {case.made_by} notwithstanding"
        )
    return f"haikugate {case.made_by}, {len(here['files'])} files of harness, suites and reference"


CLAIM_STEPS = (
    Step(4, "checklists", check_checklist),
    Step(5, "verdicts", check_verdicts),
    Step(6, "timings", check_timings),
    Step(7, "reports", check_report),
    Step(8, "freshness", check_freshness),
    Step(9, "replay", check_replay),
    Step(10, "installation", check_installation),
)
