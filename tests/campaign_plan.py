"""What a campaign of black-box probes runs: each test against the honest engine and its saboteurs.

A row is one engine against one test, judged for one or more checks. Costs are seconds of one core
for a run, launches included, measured with the default model and one engine thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.checklist import load_checklists
from harness.saboteurs.registry import SABOTEURS
from tests.probe_run import observer_of

HONEST: Final = "honest"
CPU, LOADED, CUDA = "cpu", "loaded", "cuda"
SPEED: Final[Mapping[str, float]] = {CPU: 1.0, LOADED: 0.5, CUDA: 5.0}
"""How much of a row's cost a worker of each kind does in a second."""

RESCORE: Final = "G4-GENUINE-RESCORE"
TIMED: Final = ("G4-GENUINE-CACHE", "G4-GENUINE-SHAPE", "G4-GENUINE-COALESCE")
OF_THE_HOST: Final = ("G4-GENUINE-MEMORY", "G4-GENUINE-MODELFILE", "G4-GENUINE-PHYSICS")
"""Judged by the host's memory and processor time, so of an engine that computes there."""
PACED: Final = ("G4-GENUINE-LATE", "G4-GENUINE-PROCESS", RESCORE)
"""Their test takes three quarters of a minute and waits for most of it."""
ABREAST: Final = 4
PACED_S: Final = 50.0
UNIT_S: Final = 45.0
STAGES: Final = (0.25, 0.5, 1.0)

COST_S: Final[Mapping[str, float]] = {
    "G4-GENUINE-CANARY": 0.9,
    "G4-GENUINE-STREAM": 1.8,
    "G4-GENUINE-SEED": 1.8,
    "G4-GENUINE-LOGPROB": 1.8,
    "G4-GENUINE-LENGTH": 2.1,
    "G4-GENUINE-PREFIX": 2.2,
    "G4-GENUINE-STOP": 2.2,
    "G4-GENUINE-COUNT": 2.5,
    "G4-GENUINE-METRICS": 2.5,
    "G4-GENUINE-PHYSICS": 3.9,
    "G4-GENUINE-CACHE": 4.5,
    "G4-GENUINE-MEMORY": 5.5,
    "G4-GENUINE-MODELFILE": 5.5,
    "G4-GENUINE-SHAPE": 7.8,
    "G4-GENUINE-COALESCE": 7.9,
    "G4-HAIKU": 11.0,
    "G4-GENUINE-LATE": 11.0,
    "G4-GENUINE-PROCESS": 11.0,
    "G4-GENUINE-TEMPERATURE": 13.2,
    RESCORE: 18.0,
    "G4-GENUINE-CONTEXT": 19.1,
}
SABOTEUR_COST_S: Final[Mapping[str, float]] = {}
"""Where a saboteur's run costs something else than an honest one."""
FRESH: Final = ("G4-HAIKU", "G4-GENUINE-MEMORY", "G4-GENUINE-MODELFILE", *PACED)
"""The process of an engine under these tests is a new one each time: they judge how it ages, or
stop it. Others share an engine, as in a gate; what saboteurs keep from run to run hides none."""


@dataclass(frozen=True)
class Row:
    """One engine (a saboteur's name, or HONEST) against one test, and the checks it is judged by.

    `abreast`: runs that a worker makes at a time.
    """

    engine: str
    checks: tuple[str, ...]
    cost_s: float

    @property
    def name(self) -> str:
        return f"{self.engine} {'+'.join(self.checks)}"

    @property
    def fresh(self) -> bool:
        return bool(set(self.checks) & set(FRESH))

    @property
    def abreast(self) -> int:
        return ABREAST if set(self.checks) & set(PACED) else 1

    @property
    def wanted(self) -> str:
        """The verdict that every run should have."""
        return "pass" if self.engine == HONEST else "fail"

    @property
    def places(self) -> tuple[str, ...]:
        """The kinds of worker that may run it."""
        if set(self.checks) & set(TIMED):
            return (CPU, LOADED)
        host = set(self.checks) & {*OF_THE_HOST, *PACED}
        return (CPU,) if host else (CPU, CUDA)

    def run_s(self, place: str) -> float:
        """The wall time of a run, or of so many as run abreast."""
        waits_s = PACED_S if self.abreast > 1 else 0.0
        return max(waits_s, self.cost_s * self.abreast / SPEED[place])

    def unit(self, place: str) -> int:
        """How many runs to hand out at a time."""
        return self.abreast * max(1, int(UNIT_S / self.run_s(place)))


def rows(only: Sequence[str] = (), *, rescore: bool = False) -> list[Row]:
    """The rows of all probes, or of these checks, from the cheapest to the dearest.

    Re-scoring has campaigns of its own (`haikugate calibrate`); with `rescore` its honest runs,
    which need the reference's replays, come with those of the checks that share its test.
    """
    known = [id_ for id_ in load_checklists().checks if id_ in COST_S]
    wanted = [id_ for id_ in only or known if id_ != RESCORE or rescore]
    found = [*_honest(wanted), *_saboteurs(wanted)]
    return sorted(found, key=lambda row: row.cost_s)


def _honest(checks: Sequence[str]) -> list[Row]:
    shared: dict[str, list[str]] = {}
    for id_ in checks:
        shared.setdefault(observer_of(id_).__name__, []).append(id_)
    return [Row(HONEST, tuple(ids), max(COST_S[id_] for id_ in ids)) for ids in shared.values()]


def _saboteurs(checks: Sequence[str]) -> list[Row]:
    return [
        Row(name, (saboteur.caught_by,), SABOTEUR_COST_S.get(name, COST_S[saboteur.caught_by]))
        for name, saboteur in SABOTEURS.items()
        if saboteur.caught_by in checks and saboteur.caught_by != RESCORE
    ]
