"""What a campaign of black-box probes runs: each test against the honest engine and its saboteurs.

A row is one engine against one test, judged for one or more checks. Costs are seconds of one core
for a run, launches included, measured with the default model and one engine thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.checklist import load_checklists
from harness.saboteurs.registry import SABOTEURS
from tests.probe_run import observers_of

HONEST: Final = "honest"
CPU, LOADED, CUDA = "cpu", "loaded", "cuda"
SPEED: Final[Mapping[str, float]] = {CPU: 1.0, LOADED: 0.5, CUDA: 5.0}
"""How much of a row's cost a worker of each kind does in a second; a launch is nowhere faster."""

RESCORE: Final = "G4-GENUINE-RESCORE"
TIMED: Final = ("G4-GENUINE-CACHE", "G4-GENUINE-SHAPE", "G4-GENUINE-COALESCE")
OF_THE_HOST: Final = ("G4-GENUINE-MEMORY", "G4-GENUINE-MODELFILE", "G4-GENUINE-PHYSICS")
"""Judged by the host's memory and processor time, so of an engine that computes there."""
PACED: Final = ("G4-GENUINE-LATE", "G4-GENUINE-PROCESS", RESCORE)
"""Their test takes three quarters of a minute and waits for most of it."""
ABREAST: Final[Mapping[str, int]] = {CPU: 4, CUDA: 2}
"""A run has up to three engines; on a GPU they take turns and share its memory: there the
16 lanes of a machine, four abreast, filled 141 GB, and few runs ended."""
PACED_S: Final = 45.0
UNIT_S: Final = 45.0
STAGES: Final = ((0.1, 20.0), (1.0, 5.0), (0.1, 60.0), (0.5, 20.0), (1.0, 20.0), (1.0, 60.0))
"""In turn: this share of the runs, of the rows whose run costs no more seconds than this."""

COST_S: Final[Mapping[str, float]] = {
    "G4-GENUINE-CANARY": 1.0,
    "G4-GENUINE-STREAM": 1.7,
    "G4-GENUINE-SEED": 1.8,
    "G4-GENUINE-LENGTH": 1.8,
    "G4-GENUINE-LOGPROB": 2.0,
    "G4-GENUINE-PREFIX": 2.3,
    "G4-GENUINE-STOP": 2.3,
    "G4-GENUINE-COUNT": 2.3,
    "G4-GENUINE-METRICS": 2.3,
    "G4-GENUINE-PHYSICS": 4.0,
    "G4-GENUINE-MEMORY": 4.4,
    "G4-GENUINE-MODELFILE": 4.4,
    "G4-GENUINE-CACHE": 5.0,
    "G4-HAIKU": 7.0,
    "G4-GENUINE-SHAPE": 8.5,
    "G4-GENUINE-COALESCE": 9.0,
    "G4-GENUINE-TEMPERATURE": 13.0,
    "G4-GENUINE-LATE": 16.0,
    "G4-GENUINE-PROCESS": 16.0,
    "G4-GENUINE-CONTEXT": 19.0,
    RESCORE: 30.0,
}
SABOTEUR_COST_S: Final[Mapping[str, float]] = {
    "silent-truncation": 1.5,
    "no-compute": 2.0,
    "proxies-elsewhere": 3.0,
    "canned-text": 15.0,
    "restarts-quietly": 36.0,
}
"""Where a saboteur's run costs something else than an honest one."""
FRESH: Final = ("G4-HAIKU", "G4-GENUINE-MEMORY", "G4-GENUINE-MODELFILE", *PACED)
"""The process of an engine under these tests is a new one each time: they judge how it ages, or
stop it. Others share an engine, as in a gate; what saboteurs keep from run to run hides none."""


@dataclass(frozen=True)
class Row:
    """One engine (a saboteur, or HONEST) against one test, and the checks that it is judged by."""

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
    def paced(self) -> bool:
        return bool(set(self.checks) & set(PACED))

    @property
    def wanted(self) -> str:
        """The verdict that every run should have."""
        return "pass" if self.engine == HONEST else "fail"

    @property
    def places(self) -> tuple[str, ...]:
        """The kinds of worker that may run it."""
        if set(self.checks) & set(TIMED):
            return (CPU, LOADED, CUDA) if self.engine == HONEST else (CPU, LOADED)
        return (CPU,) if set(self.checks) & set(OF_THE_HOST) else (CPU, CUDA)

    def abreast(self, place: str) -> int:
        """How many runs a worker makes at a time."""
        return ABREAST[place] if self.paced else 1

    def run_s(self, place: str) -> float:
        """The wall time of a run, or of so many as run abreast."""
        speed = 1.0 if self.fresh and place == CUDA else SPEED[place]
        work_s = self.cost_s * self.abreast(place) / speed
        return PACED_S + work_s / 4 if self.paced else work_s

    def unit(self, place: str) -> int:
        """How many runs to hand out at a time."""
        return self.abreast(place) * max(1, int(UNIT_S / self.run_s(place)))

    def gain(self, place: str) -> float:
        """Seconds of a CPU that a second of such a worker saves."""
        return self.cost_s * self.abreast(place) / self.run_s(place)


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
        shared.setdefault(observers_of([id_])[-1].__name__, []).append(id_)
    return [Row(HONEST, tuple(ids), max(COST_S[id_] for id_ in ids)) for ids in shared.values()]


def _saboteurs(checks: Sequence[str]) -> list[Row]:
    return [
        Row(name, (saboteur.caught_by,), SABOTEUR_COST_S.get(name, COST_S[saboteur.caught_by]))
        for name, saboteur in SABOTEURS.items()
        if saboteur.caught_by in checks and saboteur.caught_by != RESCORE
    ]
