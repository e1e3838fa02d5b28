"""A fleet's results: one row a cell, kept for the next call, shown as a table."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.checked import checked
from harness.errors import UsageError
from harness.fleet_campaign import Cell
from harness.visible import one_line

RESULTS: Final = "fleet.json"
TABLE: Final = "fleet.md"
SHOWN_CHARACTERS: Final = 300


class CellVerdict(StrEnum):
    """A cell's end: what its bundle says, or that none that holds came."""

    CERTIFIED = "CERTIFIED"
    REFUSED = "NOT CERTIFIED"
    UNPROVEN = "UNPROVEN"


def shown(text: object) -> str:
    """Text of others as a row has it: one line, of bounded length."""
    return one_line(str(text)[:SHOWN_CHARACTERS])


class Row(BaseModel):
    """A cell's result; `asked` are its options, `bundle` its folder, "" where none holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    asked: list[str]
    nonce: str
    verdict: CellVerdict
    said: str
    node: str = ""
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    bundle: str = ""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["haikugate-fleet-1"]
    cells: list[Row]


@dataclass(frozen=True)
class Results:
    """The output folder's two files, for programs and for people."""

    folder: Path

    def read(self) -> Mapping[str, Row]:
        """The rows of earlier calls by cell; raises UsageError for a file that has none."""
        path = self.folder / RESULTS
        try:
            fields = json.loads(path.read_bytes())
            if not isinstance(fields, dict):
                raise ValueError("wanted an object")
            found = checked(_File, fields, str(path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError, UsageError) as error:
            raise UsageError(f"{path}: not a fleet's results: {error}; move it away") from None
        return {row.cell: row for row in found.cells}

    def write(self, rows: Mapping[str, Row], cells: Sequence[Cell]) -> None:
        """All rows, of other campaigns too, and the table of these cells; files whole or not."""
        told = _File(format="haikugate-fleet-1", cells=list(rows.values())).model_dump()
        self._put(RESULTS, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        self._put(TABLE, markdown(rows, cells))

    def _put(self, name: str, text: str) -> None:
        written = self.folder / f".{name}.{os.getpid()}"
        written.write_text(text, encoding="utf-8")
        written.replace(self.folder / name)


def markdown(rows: Mapping[str, Row], cells: Sequence[Cell]) -> str:
    """A table: engines and models down, gates across, each verdict a link to its report."""
    gates = sorted({cell.gate for cell in cells})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for cell in cells:
        verdicts = lines.setdefault((cell.engine_name, cell.model_label), {})
        verdicts[cell.gate] = _linked(rows.get(cell.name))
    table = [
        _line("engine", "model", *(f"gate {gate}" for gate in gates)),
        _line(*("---" for _ in ("engine", "model", *gates))),
        *(_line(*names, *(found[gate] for gate in gates)) for names, found in lines.items()),
    ]
    unproven = [rows[cell.name] for cell in cells if cell.name in rows]
    why = [
        f"- {row.cell}: `{row.said.replace('`', chr(39))}`"
        for row in unproven
        if row.verdict == CellVerdict.UNPROVEN
    ]
    return "\n".join(["# Fleet", "", *table, "", *why, ""])


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def _linked(row: Row | None) -> str:
    if row is None:
        return "not run"
    return f"[{row.verdict}]({row.bundle}/report.html)" if row.bundle else row.verdict
