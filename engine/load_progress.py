"""Load progress: each quarter once, in order; a progress bar where a person watches."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

Tell = Callable[[int, int, int], None]
"""Called with (percent, bytes_loaded, bytes_total)."""

_QUARTERS = (0, 25, 50, 75, 100)


class LoadProgress:
    """A `backends.Progress` that tells quarters; for a person at a terminal it draws a bar too."""

    def __init__(self, tell: Tell, *, for_person: bool = True) -> None:
        self._tell = tell
        self._draws = for_person and sys.stderr.isatty()
        self._told = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "LoadProgress":
        if self._draws:
            self._bar = _open_bar()
            self._bar.start()
            self._task = self._bar.add_task("loading", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, loaded: int, total: int) -> None:
        """`loaded` of `total` bytes are on the device."""
        if self._bar is not None:
            self._bar.update(self._task, completed=loaded, total=total)
        while self._told < len(_QUARTERS) and loaded * 100 >= _QUARTERS[self._told] * total:
            percent = _QUARTERS[self._told]
            self._told += 1
            self._tell(percent, loaded if percent else 0, total)


def _open_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, console=console, transient=True)
