"""The cards of a report: engine, models, machine and run, as rows of name and value."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from harness.observation import Json

Rows = list[tuple[str, str]]
Card = tuple[str, Rows]

GIB, MIB = 1 << 30, 1 << 20


def in_bytes(count: Json) -> str:
    """A number of bytes for people."""
    if not isinstance(count, int) or isinstance(count, bool):
        return str(count)
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count} bytes"


def _rows(source: Mapping[str, Json], names: Mapping[str, str]) -> Rows:
    found = ((text, source.get(name)) for name, text in names.items())
    return [(text, _plain(value)) for text, value in found if value not in (None, "", [], {})]


def _plain(value: Json) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(str(member) for member in value)
    return str(value)


def engine_card(metadata: Mapping[str, Json]) -> Card:
    """The engine under test."""
    names = {
        "kind": "API",
        "name": "name",
        "version": "version",
        "launcher": "launcher",
        "sealed": "sealed",
        "digest": "SHA-256",
        "digest_of": "digest of",
        "image": "image",
        "command": "command",
        "url": "address",
    }
    engine = metadata.get("engine") or {}
    return "Engine under test", _rows(engine, names) or [("engine", "not recorded")]


def model_cards(metadata: Mapping[str, Json]) -> list[Card]:
    """One card a model."""
    names = {"file": "file", "path": "path", "quant": "quantization", "sha256": "SHA-256"}
    cards = []
    for model in metadata.get("models") or []:
        rows = _rows(model, names)
        if model.get("bytes") is not None:
            rows.insert(min(1, len(rows)), ("size", in_bytes(model["bytes"])))
        if model.get("generated"):
            rows.append(("weights", "generated: random numbers"))
        cards.append((f"Model {model.get('name', '')}", rows))
    return cards


def machine_card(environment: Mapping[str, Json]) -> Card:
    """The hardware and its software."""
    names = {
        "cpu": "CPU",
        "cpu_cores_usable": "cores",
        "ram": "RAM",
        "os_name": "system",
        "os": "kernel",
        "python_version": "Python",
        "driver": "GPU driver",
        "cuda_version": "CUDA",
        "container": "container",
    }
    rows = _rows({**environment, "ram": in_bytes(environment.get("ram_bytes"))}, names)
    gpus: list[Any] = environment.get("gpus") or []
    rows += [("GPU", f"{gpu.get('name')}, {in_bytes(gpu.get('memory_bytes'))}") for gpu in gpus]
    return "Machine", rows if gpus else [*rows, ("GPU", "none seen")]


def run_card(metadata: Mapping[str, Json], environment: Mapping[str, Json]) -> Card:
    """When and by what the run was made."""
    harness = metadata.get("harness") or {}
    source = environment.get("source") or {}
    commit = source.get("commit")
    changed = " + changes" if source.get("dirty") else ""
    rows = {
        "started": _moment(metadata.get("started_at")),
        "took": _duration(metadata.get("started_at"), metadata.get("ended_at")),
        "nonce": metadata.get("nonce"),
        "harness": f"haikugate {harness.get('version')}",
        "source": f"{str(commit)[:12]}{changed}" if commit else None,
    }
    return "Run", _rows(rows, {name: name for name in rows})


def _moment(value: Json) -> str | None:
    try:
        return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (TypeError, ValueError):
        return None


def _duration(started: Json, ended: Json) -> str | None:
    try:
        seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def cards(metadata: Mapping[str, Json], environment: Mapping[str, Json]) -> list[Card]:
    """All cards in the order of the report."""
    return [
        engine_card(metadata),
        *model_cards(metadata),
        machine_card(environment),
        run_card(metadata, environment),
    ]
