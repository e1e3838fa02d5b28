"""Fields from a YAML file, held to a pydantic model: each wrong one named in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import UsageError

Checked = TypeVar("Checked", bound=BaseModel)


def load_config(path: Path) -> dict[str, Any]:
    """The fields of a YAML config file; UsageError if it is not a mapping."""
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config {path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"config {path}: cannot be read as YAML: {error}") from None
    if not isinstance(fields, dict):
        raise UsageError(f"config {path}: wanted a mapping of fields, got {type(fields).__name__}")
    return fields


def checked(kind: type[Checked], fields: Mapping[str, Any], where: str) -> Checked:
    """Fields as this model; raises UsageError naming each wrong field, and the known ones."""
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        problems = "; ".join(_problem(found, known) for found in error.errors())
        raise UsageError(f"{where}: {problems}") from None


def _problem(found: ErrorDetails, known: str) -> str:
    name = ".".join(map(str, found["loc"])) or "config"
    if found["type"] == "extra_forbidden":
        named = f", there are {known}" if len(found["loc"]) == 1 else ""
        return f"{name}: no such field{named}"
    return f"{name}: {found['msg']}, got {found['input']!r:.80}"
