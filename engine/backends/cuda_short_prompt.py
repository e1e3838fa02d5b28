"""A prompt of fewer than 64 tokens as a captured graph of the body.

A graph is made for a few numbers of rows and pads the prompt to the next. The padding's rows are
computed from whatever token ids are there and never read; a row does not depend on the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kernels.context import KernelContext

GRAPH_ROWS = (8, 16, 32, 63)


@dataclass
class ShortPromptGraphs:
    """Graphs by rows, captured at first use; `queue_body` queues the body over so many rows."""

    stream: Any
    context: KernelContext
    queue_body: Callable[[int], None]
    context_length: int
    _graphs: dict[int, Any] = field(default_factory=dict)

    def launch(self, n_tokens: int) -> bool:
        """Queue the graph for a prompt at position 0.

        False, with nothing queued, for one that is longer or whose padding has no positions left.
        """
        rows = next((rows for rows in GRAPH_ROWS if n_tokens <= rows), 0)
        if not rows or rows > self.context_length:
            return False
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(rows)
        self._graphs[rows].launch(self.stream)
        return True

    def _capture(self, rows: int) -> Any:
        with self.context.noting() as launches:
            self.queue_body(rows)
        self.context.prepare(launch.kernel for launch in launches)
        with self.stream:
            self.stream.begin_capture()
            try:
                self.context.queue(launches)
            finally:
                graph = self.stream.end_capture()
            graph.upload(self.stream)
        return graph
