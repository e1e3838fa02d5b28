"""A fleet's two files: rows for programs, a table for people."""

from pathlib import Path

import pytest

from harness.campaign import cells
from harness.errors import UsageError
from harness.fleet_results import CERTIFIED, RESULTS, TABLE, UNPROVEN, Results, Row

CELLS = cells(
    {"engines": {"a": {}, "b": {}}, "models": ["smollm2-135m-instruct"], "gates": [1, 4]}, "c.yaml"
)


def row(index: int, verdict: str, bundle: str = "") -> Row:
    blank = Row(cell=CELLS[index].name, verdict=UNPROVEN, said="", nonce="00", bundle=bundle)
    return blank.ended(verdict, "a `node` ended")


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(0, CERTIFIED, f"{CELLS[0].name}/run"), row(3, UNPROVEN)]
    Results(tmp_path).write(rows, CELLS)
    assert list(Results(tmp_path).read().values()) == rows
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, TABLE}


def test_the_table_shows_every_cell(tmp_path: Path) -> None:
    Results(tmp_path).write([row(0, CERTIFIED, "a/m/gate1/run"), row(3, UNPROVEN)], CELLS)
    assert (tmp_path / TABLE).read_text().splitlines()[2:] == [
        "| engine | model | gate 1 | gate 4 |",
        "| --- | --- | --- | --- |",
        "| a | smollm2-135m-instruct | [CERTIFIED](a/m/gate1/run/report.html) | not run |",
        "| b | smollm2-135m-instruct | not run | UNPROVEN |",
        "",
        f"- {CELLS[3].name}: `a 'node' ended`",
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other", "cells": []}', '{"cells": [{"cell": 1}]}']
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(UsageError, match="not a fleet's results") as caught:
        Results(tmp_path).read()
    assert "\n" not in str(caught.value)
