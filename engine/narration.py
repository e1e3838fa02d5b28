"""Narration: one line an event on stderr, never a prompt, a completion or a key.

Callers pass numbers, names of ours and digests; text that a client sent reaches a line only as a
job id or a correlation id.
"""

import json
import sys
import threading
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

EVENTS = (
    "startup",
    "model_load_start",
    "model_load_progress",
    "model_load_complete",
    "ready",
    "execute_start",
    "execute_end",
    "cancel",
    "error",
    "residency_check",
    "shutdown",
)
HUMAN_LIMIT = 100
FORMATS = ("json", "human")


class Narrate(Protocol):
    """Tell one event; `human` is a present-tense sentence, `numbers` are fields beside it."""

    def __call__(
        self,
        event: str,
        human: str,
        *,
        action: str,
        target: str,
        level: str = "info",
        correlation_id: str | None = None,
        **numbers: Any,
    ) -> None: ...


class Narrator:
    """Writes narration lines through structlog, with what all lines of a process share."""

    def __init__(
        self, log_format: str, shared: dict[str, Any], stream: TextIO | None = None
    ) -> None:
        import structlog  # costs 40 ms that `haikugate-engine --help` need not pay

        self._lock = threading.Lock()
        stream = stream or sys.stderr
        at_terminal = log_format == "human" and stream.isatty()
        renderer = _RENDERERS["terminal" if at_terminal else log_format]
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=[renderer],
            wrapper_class=structlog.BoundLogger,
            cache_logger_on_first_use=True,
        ).bind(**shared)

    def __call__(
        self,
        event: str,
        human: str,
        *,
        action: str,
        target: str,
        level: str = "info",
        correlation_id: str | None = None,
        **numbers: Any,
    ) -> None:
        """Write one line; a closed stderr is not an error."""
        fields = {
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds"),
            "level": level,
            "actor": "haikugate-engine",
            "action": action,
            "target": target,
            "human": shorten(human),
            **numbers,
        }
        if correlation_id is not None:
            fields["correlation_id"] = correlation_id
        try:
            with self._lock:
                self._log.msg(event, **fields)
        except (OSError, ValueError):
            return


def shorten(text: str) -> str:
    """The text on one line of at most 100 characters."""
    line = " ".join(text.split())
    return line if len(line) <= HUMAN_LIMIT else line[: HUMAN_LIMIT - 1] + "…"


def _json_line(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> str:
    return json.dumps(dict(fields), ensure_ascii=True, default=str)


_PLAIN = ("timestamp", "level", "event", "human")


def _human_line(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> str:
    rest = " ".join(
        f"{name}={json.dumps(value, default=str)}"
        for name, value in fields.items()
        if name not in _PLAIN
    )
    head = f"{fields['timestamp']} {fields['level'].upper():7} {fields['event']}"
    return f"{head}: {fields['human']} | {rest}"


def _terminal_line(logger: Any, method: str, fields: MutableMapping[str, Any]) -> str:
    """A human line in place of the progress bar that may stand there; it is drawn again below."""
    return _ERASE_LINE + _human_line(logger, method, fields)


_ERASE_LINE = "\r\x1b[2K"
_RENDERERS = {"json": _json_line, "human": _human_line, "terminal": _terminal_line}
