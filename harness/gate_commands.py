"""`haikugate gates`: for those who write suites; nothing here is ever called by a run.

`observations` prints, for each check, the TOML lines that list the tests now collected: paste them
into the checklist on purpose, or let `--write` do it and read the difference. `digests --write`
then records the checklists' new digests.
"""

import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import pytest
import typer

from harness.certify import PLAIN, SUITES
from harness.checklist import DIGESTS, DIRECTORY, Check, digest_lines, load_checklists
from harness.errors import ChecklistError

app = typer.Typer(help="Checklists, for those who write suites.", no_args_is_help=True)


class _Collector:
    """Takes the collected tests by check: every parameter, in the order of collection."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = defaultdict(list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("check"):
                for check in mark.args:
                    self.tests[str(check)].append(item.name)


def collect(paths: list[Path]) -> dict[str, list[str]]:
    """The tests of every check that pytest collects there; raises ChecklistError if it cannot."""
    collector = _Collector()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        arguments = [*PLAIN, "--collect-only", "-q", *map(str, paths)]
        code = pytest.main(arguments, plugins=[collector])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise ChecklistError(f"the suites cannot be collected: {said.getvalue()[-2000:]}")
    return collector.tests


@app.command()
def observations(
    paths: Annotated[list[Path] | None, typer.Argument(help="Suites to collect.")] = None,
    write: Annotated[bool, typer.Option(help="Put them into the checklists.")] = False,
) -> None:
    """Print the `observations` of each check whose collected tests differ from its checklist."""
    collected = collect(paths or [SUITES])
    for id_, check in load_checklists().checks.items():
        found = collected.get(id_, [])
        if set(found) - check.tests or (not paths and check.tests - set(found)):
            typer.echo(f"# {id_}\n{_toml(check, found)}")
            if write:
                _replace(check, _toml(check, found))


def _replace(check: Check, table: str) -> None:
    """Put the table in the place of the check's own, in its checklist file."""
    path = DIRECTORY / f"gate{check.gate}.toml"
    text = path.read_text(encoding="utf-8")
    start = text.index("[check.observations]", text.index(f'id = "{check.id}"\n'))
    end = text.find("\n[[check]]", start)
    rest = text[end:] if end >= 0 else ""
    path.write_text(text[:start] + table + rest, encoding="utf-8")


def _toml(check: Check, found: list[str]) -> str:
    """The table to paste: known tests keep their place, new ones go to the first it can have."""
    places: dict[str, list[str]] = {place: [] for place in (*check.reported, *check.where)}
    for test in found:
        known = [place for place, tests in check.observations.items() if test in tests]
        for place in known or [next(iter(places))]:
            places[place].append(test)
    lines = ["[check.observations]"]
    for place, tests in places.items():
        listed = "".join(f"\n  {json.dumps(test, ensure_ascii=False)}," for test in tests)
        lines.append(f"{place} = [{listed}\n]" if tests else f"{place} = []")
    return "\n".join(lines) + "\n"


@app.command()
def digests(
    write: Annotated[bool, typer.Option(help="Record them beside the checklists.")] = False,
) -> None:
    """Print the checklists' digests; one that differs from its recorded digest blocks gates."""
    lines = digest_lines(load_checklists())
    if write:
        (DIRECTORY / DIGESTS).write_text(lines, encoding="utf-8")
    typer.echo(lines, nl=False)
