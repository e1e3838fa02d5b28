"""Stop sequences on streamed text: never emit what could still become a match."""

from collections.abc import Sequence


class StopMatcher:
    """Holds back the longest end of the text that begins a stop string; drops a match itself."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be emitted now, and whether a stop string has matched."""
        window = self._held + text
        starts = [at for stop in self._stops if (at := window.find(stop)) >= 0]
        if starts:
            self._held = ""
            return window[: min(starts)], True
        n_held = max((_overlap(window, stop) for stop in self._stops), default=0)
        self._held = window[len(window) - n_held :]
        return window[: len(window) - n_held], False

    def flush(self) -> str:
        """The text still held back, once no more can follow."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
