"""A fleet's two files: rows for programs, a table for people."""

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.fleet_campaign import cells
from harness.fleet_results import RESULTS, TABLE, CellVerdict, Results, Row, shown

CERTIFIED, _, UNPROVEN = CellVerdict
CELLS = cells(
    {"engines": {"a": {}, "b": {}}, "models": ["smollm2-135m-instruct"], "gates": [1, 4]}, "c.yaml"
)


def rows(**verdicts: tuple[int, str]) -> dict[str, Row]:
    found = {}
    for bundle, (index, verdict) in verdicts.items():
        cell = CELLS[index]
        held = "" if verdict == UNPROVEN else f"bundles/{cell.name}/{bundle}"
        found[cell.name] = Row(
            cell=cell.name,
            asked=cell.options(),
            nonce="00",
            verdict=verdict,
            said="a `node` ended",
            bundle=held,
        )
    return found


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    told = rows(first=(0, CERTIFIED), second=(3, UNPROVEN))
    Results(tmp_path).write(told, CELLS[:1])
    assert Results(tmp_path).read() == told, "those of another campaign stay"
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, TABLE}


def test_the_table_shows_every_cell(tmp_path: Path) -> None:
    Results(tmp_path).write(rows(run=(0, CERTIFIED), none=(3, UNPROVEN)), CELLS)
    report = f"bundles/{CELLS[0].name}/run/report.html"
    assert (tmp_path / TABLE).read_text().splitlines()[2:] == [
        "| engine | model | gate 1 | gate 4 |",
        "| --- | --- | --- | --- |",
        f"| a | smollm2-135m-instruct | [CERTIFIED]({report}) | not run |",
        "| b | smollm2-135m-instruct | not run | UNPROVEN |",
        "",
        f"- {CELLS[3].name}: `a 'node' ended`",
    ]


def test_text_of_others_is_short_and_steers_nothing() -> None:
    assert shown("\x1b[2J" + "x" * 10_000) == "\\u001b[2J" + "x" * 296


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other", "cells": []}', '{"cells": [{"cell": 1}]}']
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(UsageError, match="not a fleet's results") as caught:
        Results(tmp_path).read()
    assert "\n" not in str(caught.value)
