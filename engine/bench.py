"""`haikugate-engine bench`: prefill and decode speed beside what the memory allows."""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends import KvSequence, LoadOptions, Runtime
from engine.errors import InvalidRequest, ModelLoadError
from engine.gguf import GGUFFile
from engine.load_progress import LoadProgress
from engine.loading import LoadedModel, import_for, load_model
from engine.program import Attention, Embed, Linear, MixtureOfExperts, Op
from engine.sampler import SamplingParams

_STREAM_BYTES = 256 << 20
_SEED = 1
_KV_ITEM_BYTES = {"f16": 2, "f32": 4}


@dataclass(frozen=True)
class BenchOptions:
    """The options of `haikugate-engine bench`."""

    model: Path
    load: LoadOptions
    prefill_lengths: tuple[int, ...]
    depths: tuple[int, ...]
    n_decode: int
    repeats: int


@dataclass(frozen=True)
class Speed:
    """Tokens a second over the repeats; `bytes_per_token`: weights, keys and values."""

    phase: str
    tokens: int
    depth: int
    tokens_per_s: float
    best_tokens_per_s: float
    spread_percent: float
    bytes_per_token: int | None = None
    gb_per_s: float | None = None
    roofline_percent: float | None = None


def default_model() -> Path:
    """The embedded default model in the user's cache; ModelLoadError says how to get it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "haikugate" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        wanted = "give --model, or run: haikugate models fetch smollm2-135m-instruct"
        raise ModelLoadError(f"{path}: not there; {wanted}")
    return path


def run(options: BenchOptions, *, as_json: bool) -> int:
    """Measure and print; the exit code."""
    device_s = _open_device(options.load.device)
    import_for(options.load.device)
    begun = time.perf_counter()
    with LoadProgress(lambda *_: None) as progress:
        model = load_model(options.model, options.load, progress)
    load_s = time.perf_counter() - begun
    try:
        report = measure(model, options, load_s) | {"device_s": round(device_s, 3)}
    finally:
        model.close()
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print_table(report)
    return 0


def _open_device(device: str) -> float:
    """Seconds for what a process does once, whatever it loads: CuPy, CUDA's context, NVRTC."""
    if not device.startswith("cuda"):
        return 0.0
    from engine.backends.cuda_device import open_device

    return _timed(lambda: open_device(device))


def measure(model: LoadedModel, options: BenchOptions, load_s: float) -> dict[str, Any]:
    """Every figure as JSON; the memory ceiling is measured in the same run."""
    runtime = model.runtime
    ceiling_gb_per_s = _ceiling_gb_per_s(model, options.load.n_threads)
    weight_bytes = _weight_bytes(model)
    speeds = [_prefill_speed(runtime, n, options.repeats) for n in options.prefill_lengths]
    for depth in options.depths:
        speed = _decode_speed(runtime, depth, options)
        bytes_per_token = weight_bytes + _kv_bytes(runtime, depth + options.n_decode // 2)
        speeds.append(_with_roofline(speed, bytes_per_token, ceiling_gb_per_s))
    return {
        "model": model.name,
        "quant_kind": model.quant_kind,
        "device": runtime.device,
        "device_facts": runtime.device_facts(),
        "file_bytes": model.size_bytes,
        "load_s": round(load_s, 3),
        "load_gb_per_s": round(model.size_bytes / load_s / 1e9, 3),
        "read_ceiling_gb_per_s": ceiling_gb_per_s,
        "repeats": options.repeats,
        "memory": asdict(runtime.memory()),
        "speeds": [asdict(speed) for speed in speeds],
    }


def _prefill_speed(runtime: Runtime, n_tokens: int, repeats: int) -> Speed:
    def once() -> float:
        sequence = runtime.open_sequence()
        try:
            return _timed(lambda: runtime.prefill(sequence, _prompt(runtime, n_tokens), _go_on))
        finally:
            sequence.close()

    return _speed("prefill", n_tokens, 0, [once() for _ in range(repeats + 1)][1:])


def _decode_speed(runtime: Runtime, depth: int, options: BenchOptions) -> Speed:
    def once() -> float:
        sequence = runtime.open_sequence()
        try:
            runtime.prefill(sequence, _prompt(runtime, max(depth, 1)), _go_on)
            return _timed(lambda: _decode(runtime, sequence, options.n_decode))
        finally:
            sequence.close()

    seconds = [once() for _ in range(options.repeats + 1)][1:]
    return _speed("decode", options.n_decode, depth, seconds)


def _decode(runtime: Runtime, sequence: KvSequence, n_tokens: int) -> None:
    """N decode steps: the first token comes from the prefill's logits and is not counted."""
    tokens = runtime.tokens(sequence, SamplingParams(seed=_SEED, temperature=0.0), _go_on)
    n_seen = sum(1 for _, _ in zip(range(n_tokens + 1), tokens, strict=False))
    if n_seen <= n_tokens:
        raise InvalidRequest("n", f"the context ended after {n_seen} tokens: lower -n or -d")


def _speed(phase: str, n_tokens: int, depth: int, seconds: list[float]) -> Speed:
    rates = [n_tokens / s for s in seconds]
    mean = statistics.fmean(rates)
    spread = statistics.pstdev(rates) / mean * 100
    return Speed(phase, n_tokens, depth, round(mean, 2), round(max(rates), 2), round(spread, 2))


def _with_roofline(speed: Speed, bytes_per_token: int, ceiling: float) -> Speed:
    gb_per_s = speed.tokens_per_s * bytes_per_token / 1e9
    return Speed(
        **{
            **asdict(speed),
            "bytes_per_token": bytes_per_token,
            "gb_per_s": round(gb_per_s, 2),
            "roofline_percent": round(100 * gb_per_s / ceiling, 1),
        }
    )


def _ceiling_gb_per_s(model: LoadedModel, n_threads: int) -> float:
    """Read bandwidth of the memory that the weights are in."""
    if model.backend == "cpu":
        return read_gb_per_s(n_threads)
    from engine.backends.cuda import CudaRuntime

    assert isinstance(model.runtime, CudaRuntime)
    return model.runtime.read_gb_per_s()


def _kv_bytes(runtime: Runtime, position: int) -> int:
    """Bytes of keys and values that the token at a position reads."""
    layers = [op for op in runtime.program.body if isinstance(op, Attention)]
    width = sum(min(position, op.window or position) * op.n_kv_heads * op.head_dim for op in layers)
    return 2 * width * _KV_ITEM_BYTES[runtime.kv_dtype]


def _weight_bytes(model: LoadedModel) -> int:
    """Weight bytes that one decoded token reads: of experts only the active ones."""
    program = model.runtime.program
    with GGUFFile.open(model.path) as file:
        sizes = {name: tensor.size_bytes for name, tensor in file.tensors.items()}
        rows = {name: tensor.shape[0] for name, tensor in file.tensors.items()}
    return sum(_op_bytes(op, sizes, rows) for op in (*program.body, *program.head))


def _op_bytes(op: Op, sizes: dict[str, int], rows: dict[str, int]) -> int:
    match op:
        case Linear():
            return sizes.get(op.weight, 0)
        case Embed():
            return sizes[op.table] // rows[op.table]
        case MixtureOfExperts():
            experts = sizes[op.gate] + sizes[op.up] + sizes[op.down]
            return sizes[op.router] + experts * op.top_k // op.n_experts
        case _:
            return 0


def read_gb_per_s(n_threads: int = 0) -> float:
    """Measured read bandwidth of this machine's memory, best of five passes over 256 MiB."""
    n_threads = n_threads or len(os.sched_getaffinity(0))
    content = np.ones(_STREAM_BYTES // 8, np.uint64)
    parts = np.array_split(content, n_threads)
    with ThreadPoolExecutor(n_threads) as threads:
        seconds = [_timed(lambda: list(threads.map(np.bitwise_or.reduce, parts))) for _ in range(5)]
    return round(_STREAM_BYTES / min(seconds) / 1e9, 2)


def _prompt(runtime: Runtime, n_tokens: int) -> list[int]:
    if n_tokens > runtime.context_length:
        raise InvalidRequest("p", f"{n_tokens} tokens exceed the context {runtime.context_length}")
    draw = random.Random(_SEED)  # noqa: S311
    return [draw.randrange(runtime.vocab_size) for _ in range(n_tokens)]


def _timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _go_on() -> None:
    return


_COLUMNS = (
    "phase", "tokens", "depth", "tokens_per_s", "best_tokens_per_s", "spread_percent",
    "bytes_per_token", "gb_per_s", "roofline_percent",
)  # fmt: skip

_TITLES = ("phase", "tokens", "depth", "tok/s", "best", "±%", "B/token", "GB/s", "% roof")


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    ceiling = report["read_ceiling_gb_per_s"]
    title = f"{report['model']} on {report['device']}, loaded in {report['load_s']} s"
    table = Table(*_TITLES, title=title, caption=f"measured memory read: {ceiling} GB/s")
    for speed in report["speeds"]:
        table.add_row(*_cells(speed[name] for name in _COLUMNS))
    Console().print(table)


def _cells(values: Iterable[Any]) -> list[str]:
    return [f"{value:,}" if isinstance(value, int | float) else value or "" for value in values]
