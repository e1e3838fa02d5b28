"""`haikugate models`: what is registered, where it lies, getting it, looking into it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from harness import models
from harness.console import standard_output
from harness.models import DEFAULT_MODEL, Model

app = typer.Typer(help="Models: list, fetch, path, inspect.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A registered name.")]


@contextmanager
def progress_bar(model: Model) -> Iterator[models.Progress]:
    """A progress bar on standard error, if that is a terminal, shown from the first byte on."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(model.name, total=model.bytes)

        def advance(what: str, done_bytes: int, total_bytes: int) -> None:
            bar.update(
                task,
                description=f"{what} {model.name}",
                completed=done_bytes,
                total=total_bytes,
            )

        yield advance


def fetch_with_bar(model: Model) -> Path:
    """The model's verified file, fetched if need be, with a progress bar."""
    from harness.fetch import fetch as fetch_model

    with progress_bar(model) as advance:
        return fetch_model(model, advance)


@app.command("list")
def list_() -> None:
    """List every registered model, and whether it is here."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "here", "size", "quant", "licence", "profiles", "from"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "from")
    for model in models.registry().values():
        size = f"{model.bytes / 1e6:.0f} MB"
        here = Text("yes", style="green") if model.path.is_file() else Text("no", style="dim")
        profiles = ", ".join(model.profiles) or "–"
        table.add_row(model.name, here, size, model.quant, model.licence, profiles, model.origin)
    standard_output().print(table)


@app.command()
def fetch(
    name: Name = DEFAULT_MODEL,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A file brought by hand; its digest is checked."),
    ] = None,
) -> None:
    """Fetch a model, or place one brought by hand; verify it and print its path."""
    from harness.fetch import place

    model = models.find(name)
    if source is None:
        path = fetch_with_bar(model)
    else:
        with progress_bar(model) as advance:
            path = place(model, source, advance)
    typer.echo(path)


@app.command()
def path(name: Name = DEFAULT_MODEL) -> None:
    """Print where a fetched model lies."""
    typer.echo(models.resolve(name))


@app.command()
def inspect(
    name: Annotated[str, typer.Argument(help="A registered name or a file.")] = DEFAULT_MODEL,
) -> None:
    """Verify a registered model's file and show what it holds, as the reference engine reads it."""
    file = models.resolve(name)
    if not Path(name).is_file():
        model = models.find(name)
        models.verify_file(file, model)
        typer.echo(f"{model.name}: {model.origin}, {model.licence}, SHA-256 {model.sha256}")
    run = subprocess.run(models.inspect_command(file), check=False)
    raise typer.Exit(run.returncode)
