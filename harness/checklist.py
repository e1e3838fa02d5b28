"""The gates as data: checks, their limits and the observations they require, read from TOML.

A checklist file (`harness/checklists/gateN.toml`) holds one `[[check]]` table for each check:

id, text        what must be true
requirements    ids of requirements.toml that it answers, at least one
subject         engine (the engine under test), harness or project
where           places that can show it: any, cuda (a CUDA GPU), m0 (the reference weights)
reported        places where its numbers are reported and not judged
launchers       process, docker, attach: the launchers that can show it
engines         native, openai: the kinds of engine API that can show it
areas           extra pytest markers (`-m utf8`)
attempts        how many attempts a test may make, one of which must pass (1 unless stated)
computed        true for a check that is computed from the others and has no test
waivable        false for a check that no waiver can reach
judge           the judge's name where it is not the check's id
limits          numbers by name with unit; `_ms` and `_s` are time limits, `min_…` are floors
observations    by place: the tests, with parameters, that must have observed it
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.errors import ChecklistError

DIRECTORY = Path(__file__).parent / "checklists"
GATES = (1, 2, 3, 4)
PLACES = ("any", "cuda", "m0")
SUBJECTS = ("engine", "harness", "project")
LAUNCHERS = ("process", "docker", "attach")
ENGINE_KINDS = ("native", "openai")
DIGESTS = "SHA256SUMS"


@dataclass(frozen=True)
class Requirement:
    """A requirement: `adapted` says how it was adapted from its source, where it was."""

    id: str
    text: str
    source: str
    adapted: str = ""


@dataclass(frozen=True)
class Check:
    """One line of a gate; the fields are those of the checklist file."""

    id: str
    gate: int
    text: str
    requirements: tuple[str, ...]
    subject: str
    where: tuple[str, ...]
    launchers: tuple[str, ...]
    engines: tuple[str, ...]
    areas: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    attempts: int = 1
    computed: bool = False
    waivable: bool = True
    judge: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    observations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def judge_id(self) -> str:
        """The name of its judge in `harness.judges.JUDGES`."""
        return self.judge or self.id

    @property
    def tests(self) -> frozenset[str]:
        """Every test the checklist names for it, in any place."""
        return frozenset(test for tests in self.observations.values() for test in tests)

    def required(self, places: Sequence[str]) -> tuple[str, ...]:
        """The tests that must have observed it in these places, in the file's order."""
        wanted = (test for place in places for test in self.observations.get(place, ()))
        return tuple(dict.fromkeys(wanted))

    def seen_without_gpu(self, test: str) -> bool:
        """Whether the test can show it without a GPU: it is listed so, or nowhere and it may."""
        free = self.observations.get("any", ())
        return test in free or (test not in self.tests and "any" in (*self.where, *self.reported))

    def marks(self) -> tuple[str, ...]:
        """The pytest markers of a test of this check: its gate and those above, and its areas."""
        gates = tuple(f"gate{gate}" for gate in GATES if gate >= self.gate)
        return gates + self.areas


@dataclass(frozen=True)
class Gate:
    """One checklist file; `sha256` is the digest of its bytes."""

    number: int
    name: str
    version: str
    checks: tuple[Check, ...]
    sha256: str


@dataclass(frozen=True)
class Checklists:
    """All gates and requirements of one directory, validated against each other."""

    gates: tuple[Gate, ...]
    requirements: tuple[Requirement, ...]
    digests: Mapping[str, str]
    edited: tuple[str, ...] = ()

    @cached_property
    def checks(self) -> Mapping[str, Check]:
        """Every check by id, in the order of gate and file."""
        return MappingProxyType({check.id: check for gate in self.gates for check in gate.checks})

    @cached_property
    def areas(self) -> frozenset[str]:
        """Every area marker."""
        return frozenset(area for check in self.checks.values() for area in check.areas)

    def up_to(self, gate: int) -> tuple[Check, ...]:
        """The checks of gates 1 … `gate`: gates are cumulative."""
        return tuple(check for check in self.checks.values() if check.gate <= gate)


@lru_cache(maxsize=4)
def load_checklists(directory: Path | None = None) -> Checklists:
    """All four gates and the requirements, by default those of this installation.

    Raises ChecklistError where a file cannot be read, or an id, field or reference does not fit.
    """
    directory = directory or DIRECTORY
    requirements, requirements_sha256 = _requirements(directory / "requirements.toml")
    gates = tuple(_gate(directory / f"gate{number}.toml", number) for number in GATES)
    digests = {f"gate{gate.number}.toml": gate.sha256 for gate in gates}
    digests["requirements.toml"] = requirements_sha256
    _refuse_misfits(gates, requirements)
    return Checklists(
        gates, requirements, MappingProxyType(digests), _edited(directory / DIGESTS, digests)
    )


def load_gates(directory: Path | None = None) -> tuple[Gate, ...]:
    """The four gates in order; raises ChecklistError as `load_checklists` does."""
    return load_checklists(directory).gates


def digest_lines(checklists: Checklists) -> str:
    """The text of checklists/SHA256SUMS that belongs to these files."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(checklists.digests.items()))


def _edited(path: Path, digests: Mapping[str, str]) -> tuple[str, ...]:
    recorded = {}
    if path.is_file():
        lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        recorded = {words[1]: words[0] for words in lines if len(words) == 2}
    return tuple(name for name, digest in digests.items() if recorded.get(name) != digest)


def _gate(path: Path, number: int) -> Gate:
    table, sha256 = _read(path)
    if table.get("gate") != number:
        raise ChecklistError(f"{path.name}: wanted gate = {number}, got {table.get('gate')!r}")
    rows = table.get("check")
    if not isinstance(rows, list) or not rows:
        raise ChecklistError(f"{path.name}: wanted at least one [[check]] table, got none")
    checks = tuple(_check(path.name, number, row) for row in rows)
    return Gate(number, str(table.get("name", "")), str(table.get("version", "")), checks, sha256)


def _requirements(path: Path) -> tuple[tuple[Requirement, ...], str]:
    table, sha256 = _read(path)
    rows = table.get("requirement")
    if not isinstance(rows, list) or not rows:
        raise ChecklistError(f"{path.name}: wanted at least one [[requirement]] table, got none")
    return tuple(_requirement(path.name, row) for row in rows), sha256


def _requirement(name: str, row: Mapping[str, Any]) -> Requirement:
    try:
        return Requirement(**row)
    except TypeError as error:
        raise ChecklistError(f"{name}, requirement {row.get('id', '?')!r}: {error}") from None


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8")), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise ChecklistError(f"cannot read checklist {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ChecklistError(f"checklist {path.name} is not valid TOML: {error}") from None


_LIST_FIELDS = ("requirements", "where", "reported", "launchers", "engines", "areas")
_CHOICES = {
    "where": PLACES,
    "reported": PLACES,
    "launchers": LAUNCHERS,
    "engines": ENGINE_KINDS,
}
_NEVER_EMPTY = ("id", "text", "requirements", "subject", "where", "launchers", "engines")


def _check(name: str, gate: int, row: Mapping[str, Any]) -> Check:
    where = f"{name}, check {row.get('id', '?')!r}"
    fields: dict[str, Any] = {
        key: tuple(value) if key in _LIST_FIELDS else value for key, value in row.items()
    }
    fields["limits"] = MappingProxyType(dict(row.get("limits", {})))
    observations = {place: tuple(tests) for place, tests in row.get("observations", {}).items()}
    fields["observations"] = MappingProxyType(observations)
    try:
        check = Check(gate=gate, **fields)
    except TypeError as error:
        raise ChecklistError(f"{where}: {error}") from None
    for problem in _field_problems(check):
        raise ChecklistError(f"{where}: {problem}")
    return check


def _field_problems(check: Check) -> Iterator[str]:
    empty = [name for name in _NEVER_EMPTY if not getattr(check, name)]
    yield from (f"{name} is missing or empty" for name in empty)
    if not check.id.startswith(f"G{check.gate}-"):
        yield f"wanted an id that starts with G{check.gate}-"
    if check.subject not in SUBJECTS:
        yield f"subject: wanted one of {', '.join(SUBJECTS)}, got {check.subject!r}"
    for name, choices in _CHOICES.items():
        strange = [value for value in getattr(check, name) if value not in choices]
        yield from (
            f"{name}: wanted one of {', '.join(choices)}, got {value!r}" for value in strange
        )
    places = (*check.where, *check.reported)
    strange = [place for place in check.observations if place not in places]
    yield from (f"observations.{place}: the check is not seen there" for place in strange)
    if check.computed and check.tests:
        yield "a computed check requires no observations"
    bad = [name for name, value in check.limits.items() if type(value) not in (int, float)]
    yield from (f"limit {name}: wanted a number, got {check.limits[name]!r}" for name in bad)
    if type(check.attempts) is not int or check.attempts < 1:
        yield f"attempts: wanted an integer of at least 1, got {check.attempts!r}"


def _refuse_misfits(gates: Sequence[Gate], requirements: Sequence[Requirement]) -> None:
    checks = [check for gate in gates for check in gate.checks]
    _refuse_duplicates("check", [check.id for check in checks])
    _refuse_duplicates("requirement", [requirement.id for requirement in requirements])
    for check in checks:
        for place, tests in check.observations.items():
            _refuse_duplicates(f"{check.id}, observations.{place}: test", tests)
    known = {requirement.id for requirement in requirements}
    for check in checks:
        for strange in set(check.requirements) - known:
            raise ChecklistError(
                f"check {check.id} names requirement {strange!r}, which requirements.toml lacks"
            )


def _refuse_duplicates(noun: str, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise ChecklistError(f"{noun} {id_!r} is listed twice")
        seen.add(id_)
