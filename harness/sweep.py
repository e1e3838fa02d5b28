"""Sweeps: many experiments from one YAML, in a seeded order, resumable, compared at the end."""

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checked import checked
from harness.errors import UsageError
from harness.experiment import ExperimentConfig, ExperimentResult
from harness.measure import read_result, run_experiment

JOURNAL = "sweep.ndjson"
PLOT = "sweep.svg"
SWEEP_FIELDS = frozenset({"cycles", "shuffle", "grid"})


@dataclass(frozen=True)
class Sweep:
    """Experiments in the order they will run, all validated."""

    experiments: tuple[ExperimentConfig, ...]
    output_dir: Path


def plan(fields: Mapping[str, Any], where: str = "sweep") -> Sweep:
    """Expand `sweep: {grid: {field: [values]}, cycles: n, shuffle: bool}` over the other fields.

    Every combination is validated before anything runs: UsageError names the first invalid one.
    """
    common = {name: value for name, value in fields.items() if name != "sweep"}
    sweep = fields.get("sweep") or {}
    if not isinstance(sweep, Mapping) or set(sweep) - SWEEP_FIELDS:
        raise UsageError(f"{where}: wanted a mapping of {', '.join(sorted(SWEEP_FIELDS))}")
    cycles = sweep.get("cycles", 1)
    if not isinstance(cycles, int) or not 1 <= cycles <= 1000:
        raise UsageError(f"{where}.cycles: wanted 1 to 1000, got {cycles!r}")
    combinations = list(_combinations(sweep.get("grid") or {}, where))
    configs = [
        checked(ExperimentConfig, {**common, **c}, f"{where} {c}" if c else where)
        for c in combinations
    ]
    order = [config for _ in range(cycles) for config in configs]
    if sweep.get("shuffle", False):
        random.Random(configs[0].seed).shuffle(order)  # noqa: S311 - an order, not a secret
    return Sweep(tuple(order), configs[0].output_dir)


def _combinations(grid: Any, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(grid, Mapping):
        raise UsageError(f"{where}.grid: wanted field: [values], got {type(grid).__name__}")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}.grid.{name}: wanted a non-empty list, got {values!r:.60}")
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def run_sweep(
    sweep: Sweep,
    *,
    advance: Callable[[ExperimentConfig], None] = lambda config: None,
    run: Callable[[ExperimentConfig], ExperimentResult] = run_experiment,
) -> list[ExperimentResult]:
    """Run what the journal in output_dir does not show as done; all results, in order.

    A sweep that was interrupted goes on where it stopped: run it again with the same plan.
    """
    try:
        sweep.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"output_dir {sweep.output_dir}: cannot be written: {error.strerror}"
        ) from None
    journal = sweep.output_dir / JOURNAL
    done = _read_journal(journal)
    results = []
    for position, config in enumerate(sweep.experiments):
        key = f"{position}:{config.measurement_config_hash}"
        if key in done:
            result = read_result(sweep.output_dir / done[key] / "result.json")
        else:
            result = run(config)
            with journal.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"key": key, "id": result.experiment_id}) + "\n")
        results.append(result)
        advance(config)
    return results


def _read_journal(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            entries.append((str(entry["key"]), str(entry["id"])))
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run may be cut
    return {key: id_ for key, id_ in entries if "/" not in id_ and ".." not in id_}


def comparison(results: Sequence[ExperimentResult]) -> list[dict[str, Any]]:
    """One row an experiment: what was varied, and the figures to compare."""
    dumped = [result.config.model_dump(mode="json") for result in results]
    varied = [n for n in dumped[0] if len({json.dumps(d[n], sort_keys=True) for d in dumped}) > 1]
    return [
        {
            **{name: fields[name] for name in varied},
            "tokens_per_s": result.avg_tokens_per_second,
            "ttft_p50_ms": result.ttft_ms.p50 if result.ttft_ms else None,
            "energy_per_token_j": result.avg_energy_per_token_j,
        }
        for result, fields in zip(results, dumped, strict=True)
    ]


def plot(results: Sequence[ExperimentResult], path: Path) -> None:
    """Throughput against energy per token as SVG; against TTFT where no energy was measured."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    known = [r for r in results if r.avg_energy_per_token_j is not None]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    if known:
        x = [r.avg_energy_per_token_j or 0.0 for r in known]
        axes.set_xlabel("energy per token, J")
    else:
        known = [r for r in results if r.ttft_ms]
        x = [r.ttft_ms.p50 if r.ttft_ms else 0.0 for r in known]
        axes.set_xlabel("TTFT p50, ms (energy unknown)")
    axes.scatter(x, [r.avg_tokens_per_second for r in known])
    axes.set_ylabel("output tokens per second")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
