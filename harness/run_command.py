"""`haikugate run`: one measured experiment, or a sweep of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from harness.console import standard_output
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.experiment import ExperimentResult

HEADINGS = {
    "tokens_per_s": "tokens/s",
    "ttft_p50_ms": "TTFT p50 ms",
    "energy_per_token_j": "J/token",
}


def run(
    config: Annotated[Path | None, typer.Argument(help="A YAML config.")] = None,
    model: Annotated[str | None, typer.Option(help="A registered name or a file.")] = None,
    backend: Annotated[str | None, typer.Option(help="native, pytorch or openai.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Measured requests.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where results go.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="field=value of the config, options.url=URL; repeatable."),
    ] = None,
) -> None:
    """Measure throughput, latency, energy and FLOPs; write result.json and timeseries.parquet."""
    from harness.checked import load_config
    from harness.sweep import plan, run_sweep

    given = {"model": model, "backend": backend, "n_requests": n, "output_dir": output_dir}
    fields: dict[str, Any] = dict(load_config(config)) if config else {}
    fields |= {name: value for name, value in given.items() if value is not None}
    for text in option or ():
        _set(fields, text)
    sweep = plan(fields, str(config or "experiment"))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("experiments", total=len(sweep.experiments))
        results = run_sweep(sweep, advance=lambda _: bar.advance(task))
    _show(results, sweep.output_dir)


def _show(results: "Sequence[ExperimentResult]", folder: Path) -> None:
    """A row an experiment, with what a sweep varied; many of them also as a plot."""
    from harness.sweep import PLOT, comparison, plot

    console, rows = standard_output(), comparison(results)
    table = Table(
        "experiment", *(HEADINGS.get(name, name) for name in rows[0]), box=None, pad_edge=False
    )
    for result, row in zip(results, rows, strict=True):
        table.add_row(Text(str(folder / result.experiment_id)), *map(_shown, row.values()))
    console.print(table)
    if len(results) > 1:
        plot(results, folder / PLOT)
        console.print(Text(str(folder / PLOT)))


def _set(fields: dict[str, Any], text: str) -> None:
    """Set a field, or with a dot in its name one inside a field; raises UsageError."""
    name, equals, value = text.partition("=")
    outer, dot, inner = name.partition(".")
    within = fields.get(outer) or {}
    if not (equals and outer) or (dot and not (inner and isinstance(within, dict))):
        raise UsageError(f"--option: wanted field=value, got {text!r}")
    fields[outer] = {**within, inner: value} if dot else value


def _shown(value: Any) -> Text:
    if value is None:
        return Text("–")
    return Text(f"{value:.4g}" if isinstance(value, float) else str(value))
