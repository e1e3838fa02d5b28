"""A campaign's worker: a process that keeps to its cores and makes the runs it is given."""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from harness.launch import LaunchSpec, RunningEngine
from harness.launch.process import ProcessLauncher
from harness.observation import Verdict
from harness.profiles import PROFILES
from harness.reference import reference_engine
from harness.rescoring import Replies, replies
from suites import test_genuine, test_haiku
from suites.long_run import LongRun
from tests.campaign_plan import CUDA, HONEST, LOADED, RESCORE, Row
from tests.campaign_results import Tally
from tests.probe_run import busy_loops, command, findings

READY_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Lane:
    """Where a worker runs: its kind, its cores, the model, and when (monotonic) it must end."""

    place: str
    cores: tuple[int, ...]
    model: Path
    until_s: float

    @property
    def profile(self) -> str:
        return "gpu" if self.place == CUDA else "cpu"

    @property
    def args(self) -> tuple[str, ...]:
        device = "cuda:0" if self.place == CUDA else "cpu"
        return ("--device", device, "--threads", "1")


@dataclass(frozen=True)
class Unit:
    """So many runs of one row."""

    row: Row
    runs: int


def launch(lane: Lane, engine: str, own: Path | None = None) -> RunningEngine:
    """The honest engine or a saboteur, on the lane's device; `own`: its folder for passing files.

    Saboteurs that count their processes do so there, as each would under a harness of its own.
    """
    name = "" if engine == HONEST else engine
    env = {"TMPDIR": str(own)} if own else {}
    spec = LaunchSpec(command(name), lane.model, lane.args, env, READY_TIMEOUT_S)
    return ProcessLauncher().launch(spec)


def work(pipe: "Connection[Any, Any]", lane: Lane) -> None:
    """Make units until there are none: None says that one is done, and asks for the next."""
    psutil.Process().cpu_affinity(list(lane.cores))
    with busy_loops(int(lane.place == LOADED)), one_reference(lane):
        pipe.send(None)
        while (unit := pipe.recv()) is not None:
            for tally in made(lane, unit):
                pipe.send(tally)
            pipe.send(None)


@contextmanager
def one_reference(lane: Lane) -> Iterator[None]:
    """One reference engine for all runs of a lane; none under test knows its socket or its key."""
    with ExitStack() as kept:
        running: list[RunningEngine] = []

        @contextmanager
        def kept_running(*_: object) -> Iterator[RunningEngine]:
            if not running:
                running.append(kept.enter_context(reference_engine(lane.model, *lane.args)))
            yield running[0]

        for module in (test_genuine, test_haiku):
            vars(module)["reference_engine"] = kept_running
        yield


def made(lane: Lane, unit: Unit) -> Iterator[Tally]:
    """The unit's runs, as long as there is time for another.

    Only re-scoring needs the reference's replays: its test makes none for the other checks.
    """
    rescored = RESCORE in unit.row.checks
    vars(test_genuine)["replies"] = replies if rescored else lambda *_, **__: Replies()
    left, run_s = unit.runs, unit.row.run_s(lane.place)
    abreast = unit.row.abreast(lane.place)
    with Stand(lane, unit.row) as stand, ThreadPoolExecutor(abreast) as pool:
        while left > 0 and time.monotonic() + run_s < lane.until_s:
            now = min(left, abreast)
            yield from pool.map(lambda _: stand.run(), range(now))
            left -= now


class Stand:
    """The engine of one row: one for all its runs, or where the row says so one for each."""

    def __init__(self, lane: Lane, row: Row) -> None:
        self.lane = lane
        self.row = row
        self._shared: RunningEngine | None = None

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shared is not None:
            self._shared.stop()
            self._shared = None

    def run(self) -> Tally:
        """One run; whatever goes wrong in it is an error of each of its checks."""
        try:
            with ExitStack() as own:
                verdicts = self._verdicts(own)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            verdicts = dict.fromkeys(self.row.checks, (Verdict.ERROR.value, said))
            self.__exit__()
        return Tally(self.row, self.lane.place, verdicts)

    def _verdicts(self, own: ExitStack) -> dict[str, tuple[str, str]]:
        folder = Path(own.enter_context(TemporaryDirectory(prefix="run-")))
        fixtures: dict[str, Callable[[], Any]] = {
            "engine": lambda: self._engine(own, folder),
            "launch_engine": lambda: lambda: self._engine(own, folder),
            "long_run": lambda: LongRun.begun(self._engine(own, folder), secrets.token_hex(16)),
            "profile": lambda: PROFILES[self.lane.profile],
        }
        found = findings(self.row.checks, fixtures, self.lane.profile)
        return {id_: (one.verdict.value, one.message) for id_, one in found.items()}

    def _engine(self, own: ExitStack, folder: Path) -> RunningEngine:
        if self.row.fresh:
            engine = launch(self.lane, self.row.engine, folder)
            own.callback(engine.stop)
            return engine
        if self._shared is None:
            self._shared = launch(self.lane, self.row.engine)
        return self._shared
