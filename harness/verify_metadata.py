"""What metadata.json says of a run, held against what its verdicts rest on and what is known here.

The verdicts follow from its member `judging`; reports and statements show its other members. A
bundle that is signed again could show another profile, engine, model or signer than was judged.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from harness.checklist import Checklists
from harness.errors import BundleError
from harness.installation import engine_digest
from harness.models import find, known_by_digest, registry, unpublished
from harness.observation import Json
from harness.recompute import context_from
from harness.waivers import refuse_misfit

BLOCKING: Final = ("crashed", "interrupted")
"""The ledger's events after which a run cannot be certified."""

Metadata = Mapping[str, Json]


def check_judged(metadata: Metadata) -> None:
    """Raises BundleError where what is shown of profile, gate or engine is not what was judged."""
    judging, engine = metadata.get("judging") or {}, metadata.get("engine") or {}
    pairs = {
        "profile": (metadata.get("profile"), judging.get("profile")),
        "gate": (metadata.get("gate"), judging.get("gate")),
        "engine's kind": (engine.get("kind"), judging.get("engine_kind")),
        "launcher": (engine.get("launcher"), judging.get("launcher")),
        "engine": (engine.get("ours"), judging.get("ours")),
    }
    for name, (shown, judged) in pairs.items():
        if shown != judged:
            raise BundleError(f"metadata.json: shows {name} {shown!r}, judged was {judged!r}")
    if engine.get("sealed") and engine.get("launcher") != "docker":
        raise BundleError(f"metadata.json: launcher {engine.get('launcher')} seals no engine")
    _check_ours(metadata, engine)


def _check_ours(metadata: Metadata, engine: Metadata) -> None:
    """An engine of ours, outside a container, has the digest of the files that are listed."""
    if engine.get("ours") is not True or engine.get("launcher") != "process":
        return
    listed = (metadata.get("harness") or {}).get("files") or {}
    if engine.get("digest") != engine_digest(listed):
        raise BundleError("metadata.json: the engine is not the reference engine of this harness")


def check_blockers(metadata: Metadata, records: Iterable[Metadata]) -> None:
    """Raises BundleError where the ledger tells of an end that must block, and nothing blocks."""
    ends = [record["event"] for record in records if record.get("event") in BLOCKING]
    if ends and not (metadata.get("judging") or {}).get("blockers"):
        raise BundleError(f"attempts.ndjson: {ends[0]}, and metadata.json names no blocker")


def check_model_names(metadata: Metadata) -> None:
    """Raises BundleError for a model that is shown under the name or size of another."""
    for model in metadata.get("models") or ():
        known = known_by_digest(str(model.get("sha256")))
        shown = (model.get("name"), model.get("bytes"))
        if known is not None and shown != (known.name, known.bytes):
            raise BundleError(
                f"metadata.json: {shown[0]!a:.100}: the digest is that of {known.name}"
            )
        if known is None and model.get("sha256") and _is_registered(str(model.get("name"))):
            right = find(str(model["name"])).sha256
            raise BundleError(f"metadata.json: {model['name']} has another SHA-256, {right}")


def check_published(metadata: Metadata, checks: Mapping[str, Json]) -> None:
    """Raises BundleError where what is certified is not about the files its profile names."""
    if checks.get("certified"):
        for gap in unpublished(str(metadata.get("profile")), metadata.get("models") or ()):
            raise BundleError(f"metadata.json: {gap}")


def _is_registered(name: str) -> bool:
    return name.lower() in registry()


def check_waivers(metadata: Metadata, checklists: Checklists) -> None:
    """Raises BundleError for a waiver that no run would have taken, or judged on another day."""
    context = context_from(metadata.get("judging") or {})
    for waiver in context.waivers:
        refuse_misfit(waiver, checklists, f"metadata.json, waiver of {waiver.check!a:.80}")
    if context.waivers:
        _check_judged_at(metadata, context.judged_at)


def _check_judged_at(metadata: Metadata, judged_at: datetime | None) -> None:
    started, ended = (
        datetime.fromisoformat(metadata[name]).astimezone(UTC)
        for name in ("started_at", "ended_at")
    )
    step = timedelta(hours=1)
    if judged_at is None or not started - step <= judged_at.astimezone(UTC) <= ended + step:
        raise BundleError("metadata.json: judged_at lies outside the run's times")
