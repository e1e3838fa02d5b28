"""Waivers: a signed file that lets a named check not hold, for a stated reason and a short time.

A waiver file is TOML with one `[[waiver]]` table for each check: `check`, `owner`, `reason`,
`issued`, `expires` (dates, at most 90 days apart). Beside it lies `<file>.sig`, the detached
signature of its bytes (ECDSA P-256 over SHA-256, DER) by a trusted key that is not the key the run
is signed with: `openssl dgst -sha256 -sign KEY.pem -out waivers.toml.sig waivers.toml`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.checklist import Check, Checklists
from harness.errors import ChecklistError, SignatureError
from harness.observation import Json, Verdict
from harness.outcome import CheckResult

if TYPE_CHECKING:
    from harness.keys import PublicKey

MAX_DAYS = 90
MAX_FILE_BYTES = 1 << 20
_FIELDS = {"check": str, "owner": str, "reason": str, "issued": date, "expires": date}


@dataclass(frozen=True)
class Waiver:
    """One waived check; valid from the day it was issued to the end of the day it expires (UTC)."""

    check: str
    owner: str
    reason: str
    issued: date
    expires: date
    key_id: str

    def to_json(self) -> dict[str, Json]:
        """The waiver as a JSON object."""
        dates = {"issued": self.issued.isoformat(), "expires": self.expires.isoformat()}
        return {**vars(self), **dates}


def waiver_from_json(row: Mapping[str, Json]) -> Waiver:
    """The inverse of `Waiver.to_json`; raises ChecklistError."""
    try:
        dates = {name: date.fromisoformat(row[name]) for name in ("issued", "expires")}
        return Waiver(**{**row, **dates})
    except (KeyError, TypeError, ValueError) as error:
        raise ChecklistError(f"not a waiver: {error}") from None


def load_waivers(
    path: Path, trusted: Sequence["PublicKey"], run_key_id: str, checklists: Checklists
) -> tuple[Waiver, ...]:
    """Read and check a signed waiver file.

    Raises SignatureError if no trusted key other than the run's own signed it, ChecklistError for
    a waiver that names no check, one that can never be waived, or more than 90 days.
    """
    content = _read(path)
    signature = _read(path.with_name(path.name + ".sig"))
    key_id = _signer(path, content, signature, trusted, run_key_id)
    try:
        rows = tomllib.loads(content.decode("utf-8")).get("waiver", [])
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ChecklistError(f"waiver file {path.name} is not valid TOML: {error}") from None
    return tuple(_waiver(path.name, row, key_id, checklists) for row in rows)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ChecklistError(f"cannot read waiver file {path}: {error.strerror}") from None


def _signer(
    path: Path, content: bytes, signature: bytes, trusted: Sequence["PublicKey"], run_key_id: str
) -> str:
    for key in trusted:
        try:
            key.verify(signature, content)
        except SignatureError:
            continue
        if key.key_id == run_key_id:
            raise SignatureError(
                f"waiver file {path.name}: signed by the run's own key; a second key must sign it"
            )
        return key.key_id
    raise SignatureError(
        f"waiver file {path.name}: wanted the signature of a key given by --trust-key, got none"
        f" of {len(trusted)}"
    )


def _waiver(name: str, row: Mapping[str, Any], key_id: str, checklists: Checklists) -> Waiver:
    where = f"{name}, waiver of {row.get('check', '?')!r}"
    for field, kind in _FIELDS.items():
        if type(row.get(field)) is not kind or row[field] == "":
            raise ChecklistError(
                f"{where}: {field}: wanted a {kind.__name__}, got {row.get(field)!r}"
            )
    for strange in set(row) - set(_FIELDS):
        raise ChecklistError(f"{where}: unknown field {strange!r}")
    waiver = Waiver(**row, key_id=key_id)
    refuse_misfit(waiver, checklists, where)
    return waiver


def refuse_misfit(waiver: Waiver, checklists: Checklists, where: str) -> None:
    """Raises ChecklistError for a check that no waiver reaches, nobody's waiver, or a long one."""
    check = checklists.checks.get(waiver.check)
    if check is None:
        raise ChecklistError(f"{where}: no checklist has this check")
    if not check.waivable:
        raise ChecklistError(f"{where}: this check can never be waived")
    if not timedelta(0) <= waiver.expires - waiver.issued <= timedelta(days=MAX_DAYS):
        raise ChecklistError(f"{where}: wanted at most {MAX_DAYS} days from issued to expires")
    for name in ("owner", "reason", "key_id"):
        if not isinstance(vars(waiver)[name], str) or not vars(waiver)[name]:
            raise ChecklistError(f"{where}: {name}: wanted a str, got {vars(waiver)[name]!r:.80}")


def waive(
    result: CheckResult, check: Check, waivers: Sequence[Waiver], judged_at: datetime | None
) -> CheckResult:
    """The result, `waived` where it does not hold and a waiver for it is valid at `judged_at`."""
    if not check.waivable or result.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE):
        return result
    for waiver in waivers:
        if waiver.check != check.id or judged_at is None:
            continue
        if waiver.issued <= judged_at.date() <= waiver.expires:
            said = f"waived by {waiver.owner} until {waiver.expires}: {waiver.reason}"
            message = f"{said} ({result.verdict}: {result.message})"
            return replace(result, verdict=Verdict.WAIVED, message=message)
        result = replace(
            result, message=f"{result.message} (its waiver is not valid: {waiver.expires})"
        )
    return result
