"""A fleet's results: one row a cell, kept for the next call, shown as a table."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.campaign import Cell
from harness.errors import UsageError

RESULTS: Final = "fleet.json"
TABLE: Final = "fleet.md"
CERTIFIED: Final = "CERTIFIED"
REFUSED: Final = "NOT CERTIFIED"
UNPROVEN: Final = "UNPROVEN"


class Row(BaseModel):
    """A cell's result; `bundle` is its folder below the output folder, "" if there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    verdict: Literal["CERTIFIED", "NOT CERTIFIED", "UNPROVEN"]
    said: str
    nonce: str
    node: str = ""
    seconds: float = Field(default=0.0, ge=0)
    bundle: str = ""

    def ended(self, verdict: str, said: str) -> "Row":
        """The row with this verdict."""
        return self.model_validate({**self.model_dump(), "verdict": verdict, "said": said})


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["haikugate-fleet-1"] = "haikugate-fleet-1"
    cells: tuple[Row, ...]


@dataclass(frozen=True)
class Results:
    """The output folder's two files, for programs and for people."""

    folder: Path

    def read(self) -> Mapping[str, Row]:
        """The rows of an earlier call by cell; raises UsageError for a file that has none."""
        path = self.folder / RESULTS
        try:
            found = _File.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            why = str(error).splitlines()[0]
            raise UsageError(f"{path}: not a fleet's results: {why}; move it away") from None
        return {row.cell: row for row in found.cells}

    def write(self, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
        """All rows so far; each file whole or not at all."""
        told = _File(cells=tuple(rows)).model_dump()
        self._put(RESULTS, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        self._put(TABLE, markdown(rows, cells))

    def _put(self, name: str, text: str) -> None:
        written = self.folder / f".{name}.{os.getpid()}"
        written.write_text(text, encoding="utf-8")
        written.replace(self.folder / name)


def markdown(rows: Sequence[Row], cells: Sequence[Cell]) -> str:
    """A table: engines and models down, gates across, each verdict a link to its report."""
    by_cell = {row.cell: row for row in rows}
    gates = sorted({cell.gate for cell in cells})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for cell in cells:
        verdicts = lines.setdefault((cell.engine_name, cell.model_label), {})
        verdicts[cell.gate] = _linked(by_cell.get(cell.name))
    table = [
        _line("engine", "model", *(f"gate {gate}" for gate in gates)),
        _line(*("---" for _ in ("engine", "model", *gates))),
        *(_line(*names, *(found[gate] for gate in gates)) for names, found in lines.items()),
    ]
    why = [f"- {row.cell}: `{row.said.replace('`', chr(39))}`" for row in rows if not row.bundle]
    return "\n".join(["# Fleet", "", *table, "", *why, ""])


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def _linked(row: Row | None) -> str:
    if row is None:
        return "not run"
    return f"[{row.verdict}]({row.bundle}/report.html)" if row.bundle else row.verdict
