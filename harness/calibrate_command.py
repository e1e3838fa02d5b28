"""`haikugate calibrate`: count what honest engines show, and how often cheating ones are caught."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.console import standard_output

if TYPE_CHECKING:
    from harness.calibrate import Plan, Rate
    from harness.calibration import Pairing

Output = Annotated[
    Path | None, typer.Option(help="The calibration file to write; one there is extended.")
]


def calibrate(
    runs: Annotated[int, typer.Option(min=2, help="Honest runs.")] = 40,
    first: Annotated[int, typer.Option(min=0, help="The number of the first nonce.")] = 0,
    device: Annotated[str, typer.Option(help="The engine's device.")] = "cpu",
    reference: Annotated[str, typer.Option(help="The reference's device.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Pairs of engines at a time.")] = 1,
    cheat: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A saboteur to catch as well; repeatable; `all`."),
    ] = None,
    cheat_runs: Annotated[int, typer.Option(min=0, help="Runs of each saboteur.")] = 20,
    model: Annotated[
        str, typer.Option(help="A registered name or a file.")
    ] = "smollm2-135m-instruct",
    output: Output = None,
) -> None:
    """Calibrate re-scoring: honest runs, their false alarms, and the rate of cheats caught.

    Exit status 0 only if no honest run was alarmed about and every cheat was caught.
    """
    from harness import models
    from harness.calibrate import Plan

    plan = Plan(
        model=models.resolve(model),
        pairing=f"{device.partition(':')[0]}/{reference.partition(':')[0]}",
        engine_args=("--device", device, "--threads", str(threads)),
        reference_args=("--device", reference, "--threads", str(threads)),
        nonces=[f"calibration {number}" for number in range(first, first + runs)],
        workers=workers,
        cheat_runs=cheat_runs,
    )
    rates = _measured(plan, _saboteurs(cheat or []), output)
    _print(plan, rates)
    wrong = rates["honest"].alarms + sum(
        rate.runs - rate.alarms for name, rate in rates.items() if name != "honest"
    )
    raise typer.Exit(1 if wrong else 0)


def _saboteurs(asked: list[str]) -> list[str]:
    from harness.errors import UsageError
    from harness.rescoring import CHECK
    from harness.saboteurs.registry import SABOTEURS

    meant = [name for name, saboteur in SABOTEURS.items() if saboteur.caught_by == CHECK]
    unknown = sorted(set(asked) - set(SABOTEURS) - {"all"})
    if unknown:
        raise UsageError(f"--cheat {unknown[0]}: no such saboteur; there are {', '.join(meant)}")
    return meant if "all" in asked else asked


def _measured(plan: "Plan", cheats: list[str], output: Path | None) -> dict[str, "Rate"]:
    """Measure, and write what is known after each part: a long campaign may be ended early."""
    from harness.calibrate import catches, false_alarms, honest_runs, pairing_of

    console = Console(stderr=True)
    done: Counter[str] = Counter()

    def report(name: str) -> None:
        done[name] += 1
        console.print(f"{name} {done[name]}", markup=False, highlight=False)

    honest = honest_runs(plan, report)
    pairing = pairing_of(plan.pairing, honest)
    rates = {"honest": false_alarms(plan.pairing, honest)}
    _write(output, plan, pairing, rates)
    for name, rate in catches(plan, cheats, honest, report):
        rates[name] = rate
        _write(output, plan, pairing, rates)
    return rates


def _write(output: Path | None, plan: "Plan", pairing: "Pairing", rates: dict[str, "Rate"]) -> None:
    if output is None:
        return
    from harness.calibrate import file_of
    from harness.calibration import parse_calibration
    from harness.environment import harness_version
    from harness.launch.process import file_sha256

    known = parse_calibration(output.read_bytes(), output.name) if output.exists() else None
    pairings = dict(known.pairings) if known else {}
    measured = dict(known.table["rates"]) if known else {}
    measured[plan.pairing] = {
        name: rate.to_json(honest=name == "honest") for name, rate in rates.items()
    }
    output.write_bytes(
        file_of(
            {**pairings, plan.pairing: pairing},
            rates=measured,
            harness=harness_version(),
            model_sha256=file_sha256(plan.model),
        )
    )


def _print(plan: "Plan", rates: dict[str, "Rate"]) -> None:
    table = Table("engine", "runs", "alarms", "wrong ≤ (95 %)", "first message", box=None)
    for name, rate in rates.items():
        told = rate.to_json(honest=name == "honest")
        table.add_row(
            *(name, str(rate.runs), str(rate.alarms)),
            *(f"{told['error_rate_upper_95']:.2g}", told["message"]),
        )
    console = standard_output()
    console.print(f"{plan.pairing}: honest alarms are false, each cheat must be alarmed about")
    console.print(table)
