"""Plots of a bundle as SVG: latencies from timings.json, memory, CPU and power from telemetry.

Drawn without a display, with fixed ids and no date. Colours read on light and on dark paper.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.bundle_reader import BundleReader
from harness.observation import Json
from harness.telemetry import Sample, read_telemetry

INK = "#768390"
LINES = ("#3b82f6", "#d97706", "#10a37f", "#c2410c")
MAX_POINTS = 800
STYLE: Any = {
    "figure.figsize": (6.4, 3.0),
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "haikugate",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "legend.frameon": False,
}

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def thinned(values: Sequence[float]) -> list[float]:
    """At most MAX_POINTS of the values, evenly taken, first and last among them."""
    if len(values) <= MAX_POINTS:
        return list(values)
    step = (len(values) - 1) / (MAX_POINTS - 1)
    return [values[round(n * step)] for n in range(MAX_POINTS)]


def cumulative(samples: Sequence[float]) -> tuple[list[float], list[float]]:
    """The samples' cumulative distribution: values, and the percentage at or below each."""
    values = sorted(samples)
    shares = [100 * (n + 1) / len(values) for n in range(len(values))]
    return thinned(values), thinned(shares)


def line_plot(series: Series, axes_texts: tuple[str, str], *, logarithmic: bool = False) -> bytes:
    """An SVG with one line a series."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        for colour, (name, (x, y)) in zip(LINES, series.items(), strict=False):
            axes.plot(x, y, color=colour, linewidth=1.6, label=name)
        axes.set_xlabel(axes_texts[0])
        axes.set_ylabel(axes_texts[1])
        axes.set_ylim(bottom=0)
        if logarithmic:
            axes.set_xscale("log")
        if len(series) > 1:
            axes.legend()
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return sink.getvalue()


def _latency(timings: Mapping[str, Json]) -> dict[str, bytes]:
    streams = timings["streams"]
    samples = {
        "time to first token": [s["ttft_ms"] for s in streams if s["ttft_ms"] is not None],
        "gap between tokens": [gap for s in streams for gap in s["itl_ms"]],
    }
    positive = {name: [v for v in values if v > 0] for name, values in samples.items()}
    series = {name: cumulative(values) for name, values in positive.items() if len(values) > 1}
    if not series:
        return {}
    return {"plots/latency.svg": line_plot(series, ("ms", "% of samples"), logarithmic=True)}


def _over_time(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> Any:
    start_ns = samples[0].monotonic_ns
    known = [(s.monotonic_ns, value) for s in samples if (value := read(s)) is not None]
    seconds = [(moment_ns - start_ns) / 1e9 for moment_ns, _ in known]
    return thinned(seconds), thinned([value for _, value in known])


_HOST_PLOTS: Mapping[str, tuple[str, Callable[[Sample], float | None]]] = {
    "plots/memory.svg": ("resident memory, MiB", lambda s: s.rss_bytes / 2**20),
    "plots/cpu.svg": ("CPU, % of one core", lambda s: s.cpu_percent),
}
_GPU_PLOTS: Mapping[str, tuple[str, Callable[[Sample], float | None]]] = {
    "plots/gpu-memory.svg": (
        "GPU memory, MiB",
        lambda s: None if s.gpu_memory_bytes is None else s.gpu_memory_bytes / 2**20,
    ),
    "plots/gpu-power.svg": ("GPU power, W", lambda s: s.gpu_power_w),
    "plots/gpu-utilisation.svg": ("GPU utilisation, %", lambda s: s.gpu_percent),
}


def _telemetry(samples: Sequence[Sample]) -> dict[str, bytes]:
    host = [sample for sample in samples if sample.gpu < 0]
    gpus = sorted({sample.gpu for sample in samples if sample.gpu >= 0})
    drawn = {}
    for path, (text, read) in _HOST_PLOTS.items():
        if len(host) > 1:
            drawn[path] = line_plot({"host": _over_time(host, read)}, ("seconds", text))
    for path, (text, read) in _GPU_PLOTS.items():
        series = {f"GPU {g}": _over_time([s for s in samples if s.gpu == g], read) for g in gpus}
        known = {name: lines for name, lines in series.items() if len(lines[0]) > 1}
        if known:
            drawn[path] = line_plot(known, ("seconds", text))
    return drawn


def draw_plots(bundle: BundleReader) -> dict[str, bytes]:
    """The plots by bundle path; none where there is nothing to draw."""
    samples: list[Sample] = []
    if bundle.has("telemetry.parquet"):
        samples = read_telemetry(bundle.read("telemetry.parquet"))
    return _latency(bundle.timings) | _telemetry(samples)
