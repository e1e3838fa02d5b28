"""Measures how often black-box probes alarm on an honest engine and miss their saboteurs.

python -m tests.alarm_campaign OUTPUT.json --minutes 8.5 [--runs 200] [--cores N] [--cuda N]
[--loaded N] [--only CHECK ...] spreads the runs over worker processes, two to each pair of cores:
`--cuda` of them with engines on the GPU, `--loaded` with a busy loop each, for the timed probes.
Each row gets a tenth of its runs, then the cheap ones get all, then the dear ones half, then all.
What was counted is kept in OUTPUT.json, and a later campaign goes on from there. `--table` only
prints the file as Markdown.
"""

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness.models import resolve
from tests.campaign_plan import CPU, CUDA, LOADED, STAGES, Row, rows
from tests.campaign_results import Results, Tally, shorter, table
from tests.campaign_worker import Lane, Unit, launch, work

WRITE_EVERY_S = 5.0
TELL_EVERY_S = 20.0
GRACE_S = 20.0


@dataclass
class Schedule:
    """Which runs are still to be handed out; `given` counts those made and those on their way."""

    rows: Sequence[Row]
    runs: int
    cuda: bool
    given: Counter[str] = field(default_factory=Counter)

    def unit(self, place: str) -> Unit | None:
        """The next unit for a worker of this kind; None if nothing is left for it."""
        for share, cost_s in STAGES:
            wanted = int(self.runs * share) or 1
            rows = [r for r in self.rows if place in r.places and r.cost_s <= cost_s]
            left = [r for r in rows if self.given[r.name] < wanted]
            if left:
                row = self._best(place, left)
                runs = min(row.unit(place), wanted - self.given[row.name])
                self.given[row.name] += runs
                return Unit(row, runs)
        return None

    def _best(self, place: str, left: Sequence[Row]) -> Row:
        """On a GPU what saves a CPU most; on a CPU what no GPU worker may do, then the cheapest."""
        if place == CUDA:
            return max(left, key=lambda row: (row.gain(CUDA), row.cost_s))
        return min(left, key=lambda row: (self.cuda and CUDA in row.places, row.cost_s))

    def ended(self, unit: Unit, made: int) -> None:
        """A unit ended with so many runs made."""
        self.given[unit.row.name] -= unit.runs - made


def lanes(options: argparse.Namespace, until_s: float) -> list[Lane]:
    """A worker for each core, kept to its pair of cores: first those of the GPU."""
    cores = sorted(os.sched_getaffinity(0))[: options.cores or None]
    plain = len(cores) - options.cuda - options.loaded
    if plain < 0:
        raise SystemExit(f"--cuda and --loaded: there are only {len(cores)} cores")
    places = [CUDA] * options.cuda + [CPU] * plain + [LOADED] * options.loaded
    model = resolve(options.model)
    return [
        Lane(place, tuple(cores[n // 2 * 2 : n // 2 * 2 + 2]), model, until_s)
        for n, place in enumerate(places)
    ]


def warm_up(found: Sequence[Lane]) -> None:
    """Fill the caches of compiled code, so that the workers do not all compile at once."""
    for lane in {lane.place: lane for lane in found if lane.place != LOADED}.values():
        engine = launch(lane, "honest")
        engine.client.execute(prompt="Once upon a time", max_tokens=8, temperature=0.0)
        engine.stop()


@dataclass
class Desk:
    """The campaign's side of one worker."""

    lane: Lane
    process: BaseProcess
    unit: Unit | None = None
    made: int = 0


@contextmanager
def workers(found: Sequence[Lane]) -> Iterator[dict[Any, Desk]]:
    """A process for each lane, by its pipe; those that still run at the end are ended."""
    spawn = multiprocessing.get_context("spawn")
    desks: dict[Any, Desk] = {}
    for lane in found:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(theirs, lane))
        process.start()
        theirs.close()
        desks[ours] = Desk(lane, process)
    try:
        yield dict(desks)
    finally:
        deadline_s = time.monotonic() + GRACE_S
        for desk in desks.values():
            desk.process.join(max(0.0, deadline_s - time.monotonic()))
            if desk.process.is_alive():
                desk.process.terminate()


@dataclass
class Campaign:
    """Hands units out and counts what comes back."""

    schedule: Schedule
    results: Results
    until_s: float
    told: Counter[str] = field(default_factory=Counter)

    def run(self, found: Sequence[Lane]) -> None:
        """Until nothing is left, or the time is over."""
        wrote_s = said_s = time.monotonic()
        with workers(found) as desks:
            while desks and time.monotonic() < self.until_s + GRACE_S:
                for pipe in wait(list(desks), timeout=1.0):
                    if not self._heard(pipe, desks[pipe]):
                        del desks[pipe]
                now_s = time.monotonic()
                if now_s - wrote_s > WRITE_EVERY_S:
                    self.results.write()
                    wrote_s = now_s
                if now_s - said_s > TELL_EVERY_S:
                    self._tell(len(desks))
                    said_s = now_s
        self.results.write()
        self._tell(0)

    def _heard(self, pipe: Any, desk: Desk) -> bool:
        """One message of a worker; False if it needs no further listening to."""
        try:
            told = pipe.recv()
        except EOFError:
            return False
        if isinstance(told, Tally):
            desk.made += 1
            self._count(told)
            return True
        if desk.unit is not None:
            self.schedule.ended(desk.unit, desk.made)
        late = time.monotonic() > self.until_s
        desk.unit, desk.made = None if late else self.schedule.unit(desk.lane.place), 0
        pipe.send(desk.unit)
        return desk.unit is not None

    def _count(self, tally: Tally) -> None:
        self.results.add(tally)
        for check, (verdict, said) in tally.verdicts.items():
            wanted = verdict == tally.row.wanted
            self.told["as they must be" if wanted else "otherwise"] += 1
            if not wanted:
                print(f"{check}, {tally.row.engine}, {tally.place}: {verdict}: {shorter(said)}")

    def _tell(self, at_work: int) -> None:
        left_s = max(0.0, self.until_s - time.monotonic())
        print(f"{dict(self.told)}, {at_work} workers, {left_s:.0f} s left", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="the JSON file of what was counted")
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--runs", type=int, default=200, help="of each row, in all")
    parser.add_argument("--cores", type=int, default=0, help="0: all that this process may use")
    parser.add_argument("--cuda", type=int, default=0, help="workers with engines on the GPU")
    parser.add_argument("--loaded", type=int, default=0, help="workers with a busy loop beside")
    parser.add_argument("--rescore", action="store_true", help="honest runs of re-scoring, too")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--table", action="store_true", help="print the file, run nothing")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    results = Results(options.output)
    if not options.table:
        until_s = time.monotonic() + options.minutes * 60
        found = lanes(options, until_s)
        warm_up(found)
        todo = rows(options.only, rescore=options.rescore)
        given = Counter({row.name: results.runs_of(row) for row in todo})
        schedule = Schedule(todo, options.runs, options.cuda > 0, given)
        Campaign(schedule, results, until_s).run(found)
    print(table(results))


if __name__ == "__main__":
    main()
