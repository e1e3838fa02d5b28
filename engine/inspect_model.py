"""`haikugate-engine inspect`: what a GGUF file holds and what it would need."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.adapters import adapter_for
from engine.config import ModelConfig
from engine.gguf import GGUFFile

_SHOWN_CHARS = 80
_KV_BYTES = {"f16": 2, "f32": 4}


def show(path: Path, context_length: int, *, as_json: bool) -> int:
    """Print the report; ModelLoadError if the file is no model of ours."""
    with GGUFFile.open(path) as file:
        report = describe(file, context_length)
    if as_json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        _print_tables(report)
    return 0


def describe(file: GGUFFile, context_length: int = 0) -> dict[str, Any]:
    """The report as JSON: file, metadata, tensors by type, memory plan in bytes."""
    config = ModelConfig.from_file(file)
    program = adapter_for(config).program(config, file.tensors)
    positions = min(context_length or config.context_length, config.context_length)
    values = 2 * program.kv.n_layers * program.kv.n_kv_heads * program.kv.head_dim
    weights_bytes = sum(file.bytes_by_type.values())
    return {
        "file": file.path.name,
        "file_bytes": file.size_bytes,
        "architecture": config.architecture,
        "adapter": adapter_for(config).name,
        "quant_kind": file.quant_kind,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": _by_type(file),
        "memory": {
            "weights_bytes": weights_bytes,
            "context_length": positions,
            **{f"kv_{kind}_bytes": values * positions * n for kind, n in _KV_BYTES.items()},
        },
    }


def _by_type(file: GGUFFile) -> list[dict[str, Any]]:
    counts = dict.fromkeys(file.bytes_by_type, 0)
    for tensor in file.tensors.values():
        counts[tensor.type] += 1
    return [
        {"type": kind, "n_tensors": counts[kind], "bytes": size}
        for kind, size in file.bytes_by_type.items()
    ]


def _plain(value: Any) -> Any:
    """A metadata value as JSON; long arrays as their kind and length."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Sequence) or hasattr(value, "__len__"):
        return {"array_of": len(value)}
    return str(value)


def _print_tables(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    title = f"{report['file']} · {report['architecture']} · {report['quant_kind']}"
    console.print(escape(title), style="bold")
    metadata = [(key, _short(value)) for key, value in report["metadata"].items()]
    console.print(_table("Metadata", ("key", "value"), metadata))
    types = [(t["type"], str(t["n_tensors"]), f"{t['bytes']:,}") for t in report["tensors"]]
    console.print(_table("Tensors", ("type", "tensors", "bytes"), types))
    memory = [(name, f"{value:,}") for name, value in report["memory"].items()]
    console.print(_table("Memory plan", ("what", "amount"), memory))


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{value['array_of']} values]"
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + "…"
