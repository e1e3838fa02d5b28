"""JSON with one spelling per value: sorted keys, UTF-8, no NaN, no duplicate names."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from harness.errors import BundleError
from harness.observation import Json

MAX_BYTES = 64 * 1024 * 1024


def _encode(text: str, value: Json) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate travels as an escape
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def dumps_line(value: Json) -> bytes:
    """One compact line without its newline; raises BundleError for what JSON cannot hold."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"evidence must be JSON: {error}") from error
    return _encode(text, value)


def dumps_file(value: Json) -> bytes:
    """A file for people: indented by two, sorted, closed by a newline."""
    try:
        text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"evidence must be JSON: {error}") from error
    return _encode(text, value) + b"\n"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counted.items() if count > 1)
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:80]} is larger than a float holds")
    return number


def loads(content: bytes, where: str) -> Json:
    """Parse strictly; raises BundleError naming `where` for anything but clean, bounded JSON."""
    if len(content) > MAX_BYTES:
        raise BundleError(f"{where}: {len(content)} bytes of JSON, at most {MAX_BYTES} are read")
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise BundleError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:
        raise BundleError(f"{where}: not valid JSON: {error}") from error


def loads_lines(content: bytes, where: str) -> Iterator[Json]:
    """Parse newline-delimited JSON; the last line must be closed by a newline too."""
    if content and not content.endswith(b"\n"):
        raise BundleError(f"{where}: the last line is cut off")
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        yield loads(line, f"{where}:{number}")


def as_object(value: Json, where: str) -> dict[str, Json]:
    """The value as a JSON object; raises BundleError naming `where` otherwise."""
    if not isinstance(value, dict):
        raise BundleError(f"{where}: wanted a JSON object, got {type(value).__name__}")
    return value
