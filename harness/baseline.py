"""Performance baselines: what was measured on a device, as JSON, CSV and a plot, and the last one.

A baseline is kept by device and model in the user's cache, so that the next run can be compared.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.metrics import RequestTiming, decode_tokens_per_s, percentiles
from harness.models import cache_folder
from harness.observation import Exchange, Json
from harness.sse import decode_events
from harness.timings import token_text

SCHEMA = 1
COLUMNS = ("request", "tokens", "ttft_ms", "itl_p50_ms", "itl_p95_ms", "tokens_per_s")


def timing_of(seen: Exchange) -> RequestTiming:
    """When a recorded stream's non-empty tokens arrived."""
    events = decode_events(seen.chunks, strict=False)
    arrivals = tuple(timed.arrival_ns for timed in events if token_text(timed.event))
    return RequestTiming(seen.sent_ns, arrivals)


def baseline_of(timings: Sequence[RequestTiming], about: Mapping[str, Json]) -> dict[str, Json]:
    """The summary of the measured requests; `about` names device, model and its digest."""
    itl_ms = [gap for timing in timings for gap in timing.itl_ms]
    rates = [rate for timing in timings if (rate := decode_tokens_per_s(timing)) is not None]
    found = {
        "ttft_ms": percentiles([t.ttft_ms for t in timings if t.ttft_ms is not None]),
        "itl_ms": percentiles(itl_ms),
        "tokens_per_s": percentiles(rates),
    }
    return {
        "schema": SCHEMA,
        **about,
        "requests": len(timings),
        "tokens": sum(len(timing.token_ns) for timing in timings),
        **{name: None if p is None else asdict(p) for name, p in found.items()},
    }


def as_json(baseline: Mapping[str, Json]) -> str:
    """The baseline as a JSON file."""
    return json.dumps(baseline, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def as_csv(timings: Sequence[RequestTiming]) -> str:
    """One row a request; an empty cell where a request has no such number."""
    sink = io.StringIO()
    rows = csv.writer(sink, lineterminator="\n")
    rows.writerow(COLUMNS)
    for number, timing in enumerate(timings, 1):
        itl = percentiles(timing.itl_ms)
        gaps = (None, None) if itl is None else (itl.p50, itl.p95)
        numbers = (timing.ttft_ms, *gaps, decode_tokens_per_s(timing))
        cells = ("" if value is None else f"{value:.3f}" for value in numbers)
        rows.writerow([number, len(timing.token_ns), *cells])
    return sink.getvalue()


def as_svg(timings: Sequence[RequestTiming]) -> str:
    """The distributions of the time to the first token and of the gaps between tokens."""
    from harness.plots import cumulative, line_plot

    samples = {
        "time to first token": [t.ttft_ms for t in timings if t.ttft_ms],
        "gap between tokens": [gap for t in timings for gap in t.itl_ms if gap > 0],
    }
    series = {name: cumulative(values) for name, values in samples.items() if values}
    return line_plot(series, ("ms", "% of samples"), logarithmic=True).decode()


def files_of(timings: Sequence[RequestTiming], baseline: Mapping[str, Json]) -> dict[str, str]:
    """The baseline's three files by name."""
    return {
        "baseline.json": as_json(baseline),
        "baseline.csv": as_csv(timings),
        "baseline.svg": as_svg(timings),
    }


def kept_path(about: Mapping[str, Json], folder: Path | None = None) -> Path:
    """Where the baseline of this device and model is kept."""
    key = f"{about['device']}\n{about['model_sha256']}"
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return (folder or cache_folder() / "baselines") / f"{name}.json"


def replace_last(
    baseline: Mapping[str, Json], folder: Path | None = None
) -> dict[str, Json] | None:
    """Keep this baseline; returns the one that was kept before, None for none or a damaged one."""
    path = kept_path(baseline, folder)
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(as_json(baseline), encoding="utf-8")
    temporary.replace(path)
    return last if isinstance(last, dict) and last.get("schema") == SCHEMA else None
