"""`haikugate verify`: ten steps over a bundle, offline, trusting nothing its producer concluded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from harness.bundle_reader import BundleReader
from harness.checklist import Checklists, load_checklists
from harness.errors import HaikugateError
from harness.installation import installation
from harness.keys import PublicKey
from harness.observation import Json

MAX_AGE_DAYS = 365
VERDICTS = 5
"""The step without which a bundle is only its maker's word."""


class Status(StrEnum):
    """How a step ended."""

    HOLDS = "holds"
    FAILS = "FAILS"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class VerifyOptions:
    """What the reviewer brings: a trusted key, the nonce given to the run, the time, a replayer.

    `replay` re-scores the recorded tokens and returns what it found; it raises HaikugateError.
    `other_harness` accepts a bundle of other files of this very version: what only those can show
    is then not checked, and said so.
    """

    public_key: PublicKey | None = None
    nonce: str | None = None
    allow_expired: bool = False
    other_harness: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    replay: Callable[[BundleReader], str] | None = None
    checklists: Checklists = field(default_factory=load_checklists)
    installed: dict[str, Json] = field(default_factory=installation)


@dataclass(frozen=True)
class Case:
    """A bundle and what the reviewer brings: what every step is given."""

    bundle: BundleReader
    options: VerifyOptions

    @cached_property
    def same_version(self) -> bool:
        """Whether the harness that made the bundle has the version of this one.

        Where the reviewer accepts another harness, its files must be this one's too.
        """
        made_by, here = self.bundle.metadata.get("harness") or {}, self.options.installed
        same_files = made_by.get("files") == here["files"]
        accepted = self.options.other_harness and not same_files
        return bool(made_by.get("version") == here["version"]) and not accepted

    @property
    def made_by(self) -> str:
        """The version of the harness that made the bundle."""
        return str((self.bundle.metadata.get("harness") or {}).get("version"))


class NotChecked(HaikugateError):
    """A step that cannot be taken here; the message says why."""


@dataclass(frozen=True)
class Step:
    """One step: its number and name; `take` returns what held, or raises HaikugateError."""

    number: int
    name: str
    take: Callable[[Case], str]


@dataclass(frozen=True)
class Taken:
    """A step's outcome."""

    number: int
    name: str
    status: Status
    message: str


@dataclass(frozen=True)
class Verification:
    """All steps' outcomes, and the two lines that come first."""

    identity: str
    verdict: str
    steps: tuple[Taken, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing that could be checked fails."""
        return Status.FAILS not in [step.status for step in self.steps]

    @property
    def holds(self) -> bool:
        """Whether nothing fails, and the verdicts were worked out again from the evidence."""
        recomputed = [step.status for step in self.steps if step.number == VERDICTS]
        return self.whole and recomputed == [Status.HOLDS]


def take(step: Step, case: Case) -> Taken:
    """Take one step; whatever hostile evidence makes it raise is a failure, never a pass."""
    try:
        return Taken(step.number, step.name, Status.HOLDS, step.take(case))
    except NotChecked as reason:
        return Taken(step.number, step.name, Status.NOT_CHECKED, str(reason))
    except HaikugateError as error:
        return Taken(step.number, step.name, Status.FAILS, str(error))
    except Exception as error:
        message = f"the bundle is malformed: {type(error).__name__}: {error}"[:300]
        return Taken(step.number, step.name, Status.FAILS, message)


def verify_bundle(path: Path, options: VerifyOptions | None = None) -> Verification:
    """Verify a bundle; raises BundleError only if there is no such folder."""
    from harness.verify_claims import CLAIM_STEPS
    from harness.verify_files import FILE_STEPS

    case = Case(BundleReader(path), options or VerifyOptions())
    if case.bundle.incomplete:
        message = "the run did not finish: the bundle is not sealed and proves nothing"
        unsealed = Taken(1, "signature", Status.FAILS, f"INCOMPLETE: {message}")
        return Verification("INCOMPLETE", "no verdict", (unsealed,))
    taken = [take(step, case) for step in FILE_STEPS]
    broken = [str(step.number) for step in taken if step.status == Status.FAILS]
    taken += _claims(CLAIM_STEPS, case, broken)
    return Verification(_identity(case, taken[0]), _verdict(case, broken), tuple(taken))


def _claims(steps: Sequence[Step], case: Case, broken: list[str]) -> list[Taken]:
    """The steps that read content; they mean nothing while files or signatures do not hold."""
    if not broken:
        return [take(step, case) for step in steps]
    reason = f"step {', '.join(broken)} fails"
    return [Taken(step.number, step.name, Status.NOT_CHECKED, reason) for step in steps]


def _identity(case: Case, signature: Taken) -> str:
    if signature.status == Status.FAILS:
        return "NOT SIGNED: the signature does not hold"
    if case.options.public_key is not None:
        return f"signed by the trusted key {case.options.public_key.key_id}"
    return (
        "INTEGRITY ONLY, identity unknown: anyone can re-make and re-sign such a bundle;"
        " give --public-key of a signer you trust"
    )


def _verdict(case: Case, broken: list[str]) -> str:
    if broken:
        return "no verdict: the evidence does not hold"
    checks = case.bundle.checks
    return f"the bundle says: {checks.get('verdict_line')} ({checks.get('title')})"
