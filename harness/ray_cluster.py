"""A Ray cluster: cells as its tasks, each on a node that has the CPUs and GPUs it asks for."""

import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from harness.errors import HaikugateError, LaunchError, UsageError
from harness.fleet import Ended, Failed
from harness.fleet_campaign import Cell
from harness.fleet_cell import ORDERLY_S, CellRun, run_cell

POLL_S: Final = 1.0
CONNECT_S: Final = 10.0
QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Nothing is told to Ray's makers."""


def _on_node(options: Sequence[str], model: str | None, nonce: str) -> tuple[str, CellRun]:
    return platform.node(), run_cell(options, model, nonce)


class RayCluster:
    """The cluster at this address, or the one that RAY_ADDRESS names, or this machine alone."""

    def __init__(self, address: str | None) -> None:
        os.environ |= QUIET
        try:
            import ray
        except ImportError:
            raise UsageError("fleet: needs Ray: pip install 'haikugate[fleet]'") from None
        self._ray: Any = ray
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        try:
            _require_listener(where)
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UsageError(f"fleet: no Ray cluster at {where}: {error}") from None

    def run(self, asked: Sequence[tuple[Cell, str]]) -> Iterator[Ended]:
        """Run every cell with its nonce; each as it ends. On any way out, what runs is ended.

        A cell that no node has room for, or has any more, fails. Raises LaunchError if the cluster
        itself is gone.
        """
        waiting: dict[Any, tuple[Cell, str]] = {}
        try:
            for cell, nonce in asked:
                waiting[self._submit(cell, nonce)] = (cell, nonce)
            while waiting:
                for task, (cell, nonce) in list(waiting.items()):
                    if not self._fits(cell):
                        self._ray.cancel(task)
                        del waiting[task]
                        yield Ended(cell, nonce, "", Failed(_no_node(cell)))
                done, _ = self._ray.wait(list(waiting), timeout=POLL_S) if waiting else ([], [])
                for task in done:
                    yield self._ended(task, *waiting.pop(task))
        except self._ray.exceptions.RayError as error:
            raise LaunchError(f"fleet: the Ray cluster is gone: {error}") from None
        finally:
            self._end(list(waiting))

    def _fits(self, cell: Cell) -> bool:
        wanted = {"CPU": cell.engine.cpus, "GPU": cell.engine.gpus}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return any(all(n.get(kind, 0) >= count for kind, count in wanted.items()) for n in nodes)

    def _submit(self, cell: Cell, nonce: str) -> Any:
        task = self._ray.remote(_on_node).options(
            num_cpus=cell.engine.cpus, num_gpus=cell.engine.gpus, max_retries=0, name=cell.name
        )
        return task.remote(cell.options(), cell.model, nonce)

    def _ended(self, task: Any, cell: Cell, nonce: str) -> Ended:
        errors = self._ray.exceptions
        try:
            node, run = self._ray.get(task)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            ours = isinstance(cause, HaikugateError)
            why = str(cause) if ours else f"{type(cause).__name__}: {cause}"
            return Ended(cell, nonce, "", Failed(why))
        except errors.RayError as error:
            return Ended(cell, nonce, "", Failed(f"{type(error).__name__}: {error}"))
        return Ended(cell, nonce, node, run)

    def _end(self, tasks: Sequence[Any]) -> None:
        for task in tasks:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task)
        if tasks:
            self._ray.wait(list(tasks), num_returns=len(tasks), timeout=ORDERLY_S)
        self._ray.shutdown()


def _require_listener(where: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = where.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


def _no_node(cell: Cell) -> str:
    return f"no node has {cell.engine.cpus} CPUs and {cell.engine.gpus} GPUs"
