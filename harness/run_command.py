"""`haikugate run`: one measured experiment, or a sweep of them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.errors import UsageError


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
    from harness.measure import load_config
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
    table = Table("experiment", "tokens/s", "TTFT p50 ms", "J/token", box=None, pad_edge=False)
    for result in results:
        ttft = result.ttft_ms.p50 if result.ttft_ms else None
        table.add_row(
            str(sweep.output_dir / result.experiment_id),
            *(_number(v) for v in (result.avg_tokens_per_second, ttft)),
            _number(result.avg_energy_per_token_j),
        )
    Console(soft_wrap=True).print(table)


def _set(fields: dict[str, Any], text: str) -> None:
    """Set a field, or with a dot in its name one inside a field; raises UsageError."""
    name, equals, value = text.partition("=")
    outer, dot, inner = name.partition(".")
    within = fields.get(outer) or {}
    if not (equals and outer) or (dot and not (inner and isinstance(within, dict))):
        raise UsageError(f"--option: wanted field=value, got {text!r}")
    fields[outer] = {**within, inner: value} if dot else value


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
