"""What a campaign counted so far: one file, to which every later part adds; and its table."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.saboteurs.registry import SABOTEURS
from harness.significance import rate_upper_bound
from tests.campaign_plan import CPU, CUDA, HONEST, LOADED, Row

SCHEMA = "haikugate-campaign-1"
KEPT_MESSAGES = 20


@dataclass(frozen=True)
class Tally:
    """One run: the engine, where it ran, and of each check the verdict and what was said."""

    row: Row
    place: str
    verdicts: dict[str, tuple[str, str]]


@dataclass
class Cell:
    """One check's verdicts on one engine in one place; the messages are of unwanted verdicts."""

    check: str
    engine: str
    place: str
    verdicts: Counter[str] = field(default_factory=Counter)
    unwanted: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return self.verdicts.total()


class Results:
    """Cells by check, engine and place, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[tuple[str, str, str], Cell] = {}
        for told in self._kept():
            cell = Cell(**{**told, "verdicts": Counter(told["verdicts"])})
            self.cells[cell.check, cell.engine, cell.place] = cell

    def _kept(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        told = json.loads(self.path.read_text(encoding="utf-8"))
        if told.get("schema") != SCHEMA:
            raise SystemExit(f"{self.path}: wanted a file of schema {SCHEMA}")
        cells: list[dict[str, Any]] = told["cells"]
        return cells

    def add(self, tally: Tally) -> None:
        """Count one run."""
        for check, (verdict, said) in tally.verdicts.items():
            key = (check, tally.row.engine, tally.place)
            cell = self.cells.setdefault(key, Cell(*key))
            cell.verdicts[verdict] += 1
            if verdict != tally.row.wanted and len(cell.unwanted) < KEPT_MESSAGES:
                cell.unwanted.append(f"{verdict}: {shorter(said)}")

    def write(self) -> None:
        """Put the file in its place whole, a line for each cell, or leave the old one."""
        cells = [
            json.dumps(vars(cell), ensure_ascii=False) for _, cell in sorted(self.cells.items())
        ]
        text = f'{{"schema": "{SCHEMA}", "cells": [\n' + ",\n".join(cells) + "\n]}\n"
        part = self.path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.path)

    def of(self, check: str, engine: str) -> list[Cell]:
        """The cells of one check and engine."""
        return [c for c in self.cells.values() if (c.check, c.engine) == (check, engine)]

    def runs_of(self, row: Row) -> int:
        """The runs that every check of the row has."""
        return min(sum(cell.runs for cell in self.of(check, row.engine)) for check in row.checks)


def shorter(said: str) -> str:
    """What was said, at most 600 characters: its begin, and its end, where a cause stands."""
    return said if len(said) <= 600 else f"{said[:200]} … {said[-397:]}"


def wrong(cells: Iterable[Cell]) -> int:
    """The runs whose verdict was not the wanted one; an error shows nothing, so it is wrong."""
    return sum(
        cell.runs - cell.verdicts["pass" if cell.engine == HONEST else "fail"] for cell in cells
    )


def table(results: Results) -> str:
    """The campaign as Markdown: for each check its honest runs, then each of its saboteurs."""
    head = (
        "check",
        "engine",
        "runs",
        *PLACES.values(),
        "as it must be",
        "otherwise at most (95 %)",
    )
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for check in dict.fromkeys(check for check, _, _ in sorted(results.cells)):
        counted = {engine: results.of(check, engine) for engine in (HONEST, *SABOTEURS)}
        lines += [
            "| " + " | ".join(_line(check, engine, cells)) + " |"
            for engine, cells in counted.items()
            if cells
        ]
    return "\n".join([*lines, "", _total(results)])


PLACES = {CPU: "CPU", LOADED: "loaded CPU", CUDA: "CUDA"}


def _line(check: str, engine: str, cells: Sequence[Cell]) -> Iterator[str]:
    runs, missed = sum(cell.runs for cell in cells), wrong(cells)
    yield from (check, engine, str(runs))
    for place in PLACES:
        yield str(sum(cell.runs for cell in cells if cell.place == place) or "–")
    yield f"{'passed' if engine == HONEST else 'caught'} {runs - missed}"
    yield f"{rate_upper_bound(missed, runs):.1%}".replace("%", " %")


def _total(results: Results) -> str:
    honest = [cell for cell in results.cells.values() if cell.engine == HONEST]
    cheats = [cell for cell in results.cells.values() if cell.engine != HONEST]
    alarms, missed = wrong(honest), wrong(cheats)
    return (
        f"{sum(cell.runs for cell in honest)} honest verdicts with {alarms} alarms, "
        f"{sum(cell.runs for cell in cheats)} runs of saboteurs with {missed} missed."
    )
