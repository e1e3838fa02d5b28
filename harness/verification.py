"""A verification: its steps, what each is given, and how each ended."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property

from harness.bundle_reader import BundleReader
from harness.checklist import Checklists, load_checklists
from harness.errors import HaikugateError
from harness.installation import installation
from harness.keys import PublicKey
from harness.observation import Json

MAX_AGE_DAYS = 365
VERDICTS, REPLAY = 5, 9
"""The step without which a bundle is its maker's word, and the one that a reviewer asks for."""


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
    is then not checked, and said so. `allow_outside` accepts waivers and gates of other bundles,
    of which the bundle holds no proof.
    """

    public_key: PublicKey | None = None
    nonce: str | None = None
    allow_expired: bool = False
    other_harness: bool = False
    allow_outside: bool = False
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
    replay_asked: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing that could be checked fails."""
        return Status.FAILS not in [step.status for step in self.steps]

    @property
    def recomputed(self) -> bool:
        """Whether the verdicts were worked out again from the evidence."""
        return [s.status for s in self.steps if s.number == VERDICTS] == [Status.HOLDS]

    @property
    def unchecked(self) -> list[str]:
        """The steps that could not be taken; the replay is one of them only where asked for."""
        left = [step for step in self.steps if step.status == Status.NOT_CHECKED]
        return [step.name for step in left if step.number != REPLAY or self.replay_asked]

    @property
    def holds(self) -> bool:
        """Whether nothing fails, and nothing was left unchecked that needs no model."""
        return self.whole and self.recomputed and not self.unchecked


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
