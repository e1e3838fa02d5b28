"""SIGTERM as an orderly end of a gate run: every engine stops, and its bundle stays INCOMPLETE."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Never


class Terminated(KeyboardInterrupt):
    """The harness was asked to end: pytest tears down what runs, as on Ctrl-C."""


def end_orderly_on_sigterm() -> Callable[[], None]:
    """Raise Terminated in the main thread on the first SIGTERM; returns what undoes this."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(signal.SIGTERM, _terminate)
    return lambda: _restore(before)


def _terminate(number: int, frame: FrameType | None) -> Never:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the first's end
    raise Terminated("SIGTERM")


def _restore(before: object) -> None:
    signal.signal(signal.SIGTERM, before if callable(before) else signal.SIG_DFL)
