"""`haikugate selftest`: run engines that cheat, say which check caught each."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.console import standard_output

if TYPE_CHECKING:
    from harness.selftest import Control, Qualification, Row

JSON_NAME = "qualification.json"
MARKDOWN_NAME = "qualification.md"


def selftest(
    quick: Annotated[
        bool, typer.Option(help="One saboteur for each check that is tested.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One saboteur; repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs of the control and each saboteur.")] = 1,
    model: Annotated[
        str, typer.Option(help="A registered name or a file.")
    ] = "smollm2-135m-instruct",
    output: Annotated[
        Path | None, typer.Option(help=f"A folder for {JSON_NAME} and {MARKDOWN_NAME}.")
    ] = None,
) -> None:
    """Test the harness with engines that cheat: each must fail the check meant for it.

    Exit status 0 only if every one is caught and the honest control raises no alarm.
    """
    from harness import models
    from harness.selftest import chosen, planned, qualification, run_trials

    names = chosen(only or (), quick=quick)
    path, plan = models.resolve(model), planned(names, runs)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("control", total=len(plan))
        trials = []
        for one in run_trials(path, plan, jobs):
            trials.append(one)
            bar.update(task, advance=1, description=f"{one.saboteur} {one.seconds:.0f} s")
    found = qualification(names, trials)
    _print(found)
    if output is not None:
        write(found, output)
    raise typer.Exit(0 if found.holds else 1)


def write(found: "Qualification", folder: Path) -> None:
    """Both files of a qualification."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(found), indent=2, ensure_ascii=False) + "\n"
    (folder / JSON_NAME).write_text(text, encoding="utf-8")
    (folder / MARKDOWN_NAME).write_text(as_markdown(found), encoding="utf-8")


def as_json(found: "Qualification") -> dict[str, Any]:
    """The qualification as the report's annex reads it."""
    control = found.control
    return {
        "holds": found.holds,
        "control": {
            "runs": control.runs,
            "checks": control.checks,
            "alarms": control.alarms,
            "alarm_rate_upper_95": control.alarm_rate_bound,
        },
        "saboteurs": [
            {
                "name": row.name,
                "cheat": row.cheat,
                "intended": row.intended,
                "runs": row.runs,
                "caught": row.caught,
                "verdict": row.verdict,
                "miss_rate_upper_95": row.miss_rate_bound,
                "by": sorted(row.by),
                "counts": row.by,
                "message": row.message,
            }
            for row in found.rows
        ],
    }


def as_markdown(found: "Qualification") -> str:
    """The matrix as a table, with what each saboteur does."""
    head = ("saboteur", "what it does", "meant to be caught by", "runs", "caught", "failed")
    lines = [_control_line(found.control), ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in found.rows]
    return "\n".join([*lines, ""])


def _cells(row: "Row") -> tuple[str, ...]:
    by = ", ".join(f"{check} {count}" for check, count in sorted(row.by.items()))
    caught = "unproven" if row.runs == 0 else str(row.caught)
    return (row.name, row.cheat, row.intended, str(row.runs), caught, by or "–")


def _control_line(control: "Control") -> str:
    if not control.runs:
        return "The control did not run."
    alarms = "; ".join(f"{check}: {said}" for check, said in control.alarms.items()) or "none"
    return (
        f"Control (honest proxy): {control.runs} runs of {control.checks} checks, "
        f"false alarms: {alarms}; rate of runs with a false alarm at most "
        f"{control.alarm_rate_bound:.2g} (95 %)."
    )


def _print(found: "Qualification") -> None:
    table = Table("saboteur", "meant for", "caught", "missed ≤", "failed", box=None, pad_edge=False)
    for row in found.rows:
        rate = "unproven" if row.runs == 0 else f"{row.caught}/{row.runs}"
        bound = "–" if row.runs == 0 else f"{row.miss_rate_bound:.2g}"
        table.add_row(row.name, row.intended, rate, bound, ", ".join(sorted(row.by)) or "–")
    console = standard_output()
    console.print(table)
    console.print(_control_line(found.control), markup=False)
    missed = [row for row in found.rows if row.verdict == "missed"]
    for row in missed:
        console.print(f"missed: {row.name} ({row.intended}): {row.message}", markup=False)
    unproven = sum(row.verdict == "unproven" for row in found.rows)
    console.print(
        f"{len(found.rows) - len(missed) - unproven} caught, {len(missed)} missed, "
        f"{unproven} unproven"
    )
