"""The harness tested by engines that cheat: each saboteur against the check meant to catch it.

A trial is an ordinary gate run in a process of its own: the suites, the judges and the sealed
bundle are those of a certificate. A saboteur is caught where the intended check's verdict is
`fail`; an `error` or a test that did not run catches nothing.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from harness.certify import NO_PLUGINS, PLAIN, SUITES
from harness.checklist import load_checklists
from harness.errors import UsageError
from harness.saboteurs.registry import CONTROL, SABOTEURS
from harness.significance import rate_upper_bound

TRIAL_TIMEOUT_S = 900.0
CHECK_TIMEOUT_S = 120.0
"""What each check more adds to a trial's time: the control has them all."""
CONTROL_PARTS = 4
LONGEST = ("G4-GENUINE-RESCORE", "G4-GENUINE-LATE", "G4-GENUINE-PROCESS", "G4-HAIKU")
"""Trials of these begin first, so that none is left alone at the end."""
PLACE = "any"
KEPT_VARIABLES = ("HAIKUGATE_CACHE_DIR",)
ALARMS = ("fail", "error")


@dataclass(frozen=True)
class Trial:
    """One gate run against one saboteur: the verdicts of the checks that its tests observed."""

    saboteur: str
    verdicts: dict[str, str]
    messages: dict[str, str]
    seconds: float

    def failed(self) -> list[str]:
        """The checks that failed it."""
        return [check for check, verdict in self.verdicts.items() if verdict == "fail"]


@dataclass(frozen=True)
class Row:
    """One saboteur over all its runs; `by` are the checks that failed it at least once."""

    name: str
    cheat: str
    intended: str
    runs: int
    caught: int
    by: dict[str, int]
    message: str

    @property
    def verdict(self) -> str:
        """`caught`, `missed`, or `unproven` where no test of the intended check exists."""
        if self.runs == 0:
            return "unproven"
        return "caught" if self.caught == self.runs else "missed"

    @property
    def miss_rate_bound(self) -> float:
        """The one-sided 95 % upper bound of the rate at which it is missed."""
        return rate_upper_bound(self.runs - self.caught, self.runs) if self.runs else 1.0


@dataclass(frozen=True)
class Control:
    """The honest proxy over all its runs: each verdict that was not `pass` is a false alarm."""

    runs: int
    checks: int
    alarms: dict[str, str]
    clean: int

    @property
    def alarm_rate_bound(self) -> float:
        """The one-sided 95 % upper bound of the rate of runs with a false alarm."""
        return rate_upper_bound(self.runs - self.clean, self.runs) if self.runs else 1.0


@dataclass(frozen=True)
class Qualification:
    """What a self-test measured."""

    control: Control
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """Every saboteur caught by its intended check in every run, no false alarm."""
        caught = bool(self.rows) and all(row.verdict == "caught" for row in self.rows)
        return caught and self.control.runs > 0 and not self.control.alarms


def required_tests(check: str) -> tuple[str, ...]:
    """The tests that observe a check without a GPU; none while nobody has written them."""
    return load_checklists().checks[check].required((PLACE,))


def chosen(only: Sequence[str], *, quick: bool) -> list[str]:
    """Saboteurs by name; quick: the first of each intended check. UsageError for an unknown one."""
    unknown = sorted(set(only) - set(SABOTEURS))
    if unknown:
        raise UsageError(f"--only {unknown[0]}: no such saboteur; there are {', '.join(SABOTEURS)}")
    names = list(only or SABOTEURS)
    if not quick:
        return names
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(SABOTEURS[name].caught_by, name)
    return list(first.values())


Plan = list[tuple[str, list[str]]]
"""Trials to make: the saboteur and the checks whose tests run against it."""


def planned(names: Sequence[str], runs: int) -> Plan:
    """The control in its parts, then each saboteur, `runs` times; those without a test left out."""
    checks = list(dict.fromkeys(SABOTEURS[name].caught_by for name in names))
    control: Plan = [(CONTROL.name, part) for part in control_parts(checks)] * runs
    each = [(name, [SABOTEURS[name].caught_by]) for name in names]
    each.sort(key=lambda one: one[1][0] not in LONGEST)
    return control + [one for one in each if required_tests(one[1][0]) for _ in range(runs)]


def control_parts(checks: Sequence[str]) -> list[list[str]]:
    """Trials that together make one run of the control: checks that share a test stay together."""
    groups: list[tuple[set[str], list[str]]] = []
    for check in checks:
        tests = set(required_tests(check))
        sharing = [group for group in groups if group[0] & tests]
        groups = [group for group in groups if group not in sharing]
        joined = [check for _, some in sharing for check in some]
        groups += [(tests.union(*(some for some, _ in sharing)), [*joined, check])] if tests else []
    parts = [groups[n::CONTROL_PARTS] for n in range(CONTROL_PARTS)]
    return [[check for _, some in part for check in some] for part in parts if part]


def run_trials(model: Path, plan: Plan, jobs: int = 1) -> Iterator[Trial]:
    """Make the trials, `jobs` at a time, in the plan's order."""
    args = ("--threads", "1") if jobs > 1 else ()
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda one: trial(one[0], one[1], model, args), plan)


def trial(
    saboteur: str, checks: Sequence[str], model: Path, engine_args: Sequence[str] = ()
) -> Trial:
    """A gate run of these checks' tests against one saboteur."""
    started = time.monotonic()
    engine = (sys.executable, "-m", "harness.saboteurs", saboteur, *engine_args)
    timeout_s = TRIAL_TIMEOUT_S + CHECK_TIMEOUT_S * (len(checks) - 1)
    with TemporaryDirectory(prefix="haikugate-selftest-") as folder:
        ended = _run(_pytest_command(engine, checks, model, Path(folder)), timeout_s)
        rows = _verdict_rows(Path(folder))
    seen = {row["id"]: row for row in rows if row["verdict"] in ("pass", *ALARMS)}
    messages = {id_: str(row["message"]) for id_, row in seen.items()}
    if not ended:
        messages = dict.fromkeys(checks, f"no verdict after {timeout_s:.0f} s")
    return Trial(
        saboteur,
        {id_: str(row["verdict"]) for id_, row in seen.items()},
        messages,
        time.monotonic() - started,
    )


def _run(command: Sequence[str], timeout_s: float) -> bool:
    """Run to its end; False if time ran out. Whatever happens, its engines end with it."""
    quiet = subprocess.DEVNULL
    running = subprocess.Popen(command, env=_environment(), stdout=quiet, stderr=quiet)
    try:
        running.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if running.poll() is None:
            _kill_tree(psutil.Process(running.pid))
            running.wait()
    return True


def _kill_tree(leader: psutil.Process) -> None:
    for process in (*leader.children(recursive=True), leader):
        with suppress(psutil.Error):
            process.kill()


def _pytest_command(
    engine: Sequence[str], checks: Sequence[str], model: Path, folder: Path
) -> list[str]:
    known = load_checklists().checks
    areas = sorted({area for check in checks for area in known[check].areas})
    tests = sorted({test for check in checks for test in required_tests(check)})
    return [
        *(sys.executable, "-m", "pytest", *PLAIN, "-q", str(SUITES)),
        *("-m", " or ".join(areas), "-k", " or ".join(tests), "--profile", "cpu"),
        *("--engine-command", f"{shlex.join(engine)} --model {{model}} --port {{port}}"),
        *("--model", str(model), "--proof-dir", str(folder)),
    ]


def _environment() -> dict[str, str]:
    """The environment without what belongs to a real run: its key, folder and name."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or not name.startswith(("HAIKUGATE_", "PYTEST_"))
    }
    return kept | NO_PLUGINS


def _verdict_rows(folder: Path) -> list[dict[str, str]]:
    found = sorted(folder.glob("*/checks.json"))
    if not found:
        return []
    rows: list[dict[str, str]] = json.loads(found[0].read_text(encoding="utf-8"))["checks"]
    return rows


def qualification(names: Sequence[str], trials: Sequence[Trial]) -> Qualification:
    """The matrix of what was measured."""
    return Qualification(
        _control([one for one in trials if one.saboteur == CONTROL.name], names),
        tuple(_row(name, [one for one in trials if one.saboteur == name]) for name in names),
    )


def _control(trials: Sequence[Trial], names: Sequence[str]) -> Control:
    parts = control_parts(list(dict.fromkeys(SABOTEURS[name].caught_by for name in names)))
    n_parts, checks = len(parts), sum(len(part) for part in parts)
    alarms: dict[str, str] = {}
    clean = 0
    runs = [trials[i : i + n_parts] for i in range(0, len(trials), n_parts or 1)]
    for run in runs:
        found = _alarms(run, parts)
        clean += not found
        alarms |= found
    return Control(len(runs), checks, alarms, clean)


def _alarms(run: Sequence[Trial], parts: Sequence[Sequence[str]]) -> dict[str, str]:
    """What was said for each check that one run of the control did not pass, or did not run."""
    found: dict[str, str] = {}
    for part, one in zip_longest(parts, run, fillvalue=None):
        seen = dict.fromkeys(part or (), "not_run") | (one.verdicts if one else {})
        said = one.messages if one else {}
        found |= {check: said.get(check, v) for check, v in seen.items() if v != "pass"}
    return found


def _row(name: str, trials: Sequence[Trial]) -> Row:
    saboteur = SABOTEURS[name]
    intended = saboteur.caught_by
    by = Counter(check for one in trials for check in one.failed())
    said = [one.messages.get(intended, "no verdict") for one in trials]
    return Row(
        name, saboteur.cheat, intended, len(trials), by[intended], dict(by), "".join(said[:1])
    )
