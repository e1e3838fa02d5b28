"""`haikugate fleet`: a campaign of models × engines × gates over a Ray cluster."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from harness.console import standard_output
from harness.visible import one_line

if TYPE_CHECKING:
    from harness.fleet import Cluster
    from harness.fleet_campaign import Cell
    from harness.fleet_results import Row

EXAMPLE = """A campaign file:

engines:
  reference: {}
  theirs: {engine: openai, engine_command: "serve --model {model} --port {port}", gpus: 1}

models: \\[smollm2-135m-instruct]

gates: \\[1, 4]"""
STYLES = {"CERTIFIED": "green", "NOT CERTIFIED": "bold red", "UNPROVEN": "yellow"}


def fleet(
    campaign: Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)],
    address: Annotated[
        str | None,
        typer.Option(help="The Ray cluster; RAY_ADDRESS, or this machine, if omitted."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where bundles and results land.")] = Path("fleet"),
    public_key: Annotated[
        Path | None, typer.Option(help="PEM of the signer that every bundle must have.")
    ] = None,
    plan: Annotated[bool, typer.Option(help="Only list the cells; runs nothing.")] = False,
) -> None:
    """Certify models × engines × gates over a Ray cluster, and verify every bundle here.

    Exit status 0 only if every cell is certified. The same command goes on after an interruption.
    """
    from harness.checked import load_config
    from harness.fleet import run_campaign
    from harness.fleet_campaign import cells
    from harness.fleet_results import TABLE, CellVerdict
    from harness.keys import read_public_key

    asked = cells(load_config(campaign), str(campaign))
    if plan:
        _print_plan(asked)
        return
    key = read_public_key(public_key) if public_key else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("cells", total=len(asked))

        def advance(row: "Row") -> None:
            bar.update(task, advance=1, description=f"{row.cell} {row.verdict}")

        rows = run_campaign(asked, output, key, lambda: _cluster(address), advance)
    _print(rows)
    standard_output().print(Text(str(output / TABLE)))
    raise typer.Exit(0 if all(row.verdict == CellVerdict.CERTIFIED for row in rows) else 1)


def _cluster(address: str | None) -> "Cluster":
    from harness.ray_cluster import RayCluster

    return RayCluster(address)


def _print_plan(cells: "Sequence[Cell]") -> None:
    table = Table("cell", "CPUs", "GPUs", "haikugate certify", box=None, pad_edge=False)
    for cell in cells:
        need = str(cell.engine.cpus), str(cell.engine.gpus)
        table.add_row(Text(cell.name), *need, Text(one_line(shlex.join(cell.options()))))
    standard_output().print(table)


def _print(rows: "Sequence[Row]") -> None:
    table = Table("cell", "verdict", "node", "s", "what", box=None, pad_edge=False)
    for row in rows:
        verdict = Text(row.verdict, style=STYLES[row.verdict])
        seconds = f"{row.seconds:.0f}"
        table.add_row(Text(row.cell), verdict, Text(row.node), seconds, Text(row.said))
    standard_output().print(table)
