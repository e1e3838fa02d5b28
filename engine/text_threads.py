"""Two threads for work of milliseconds, such as tokenizing, beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class TextThreads:
    """Runs functions off the event loop; `close` never waits for them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, "text")
        self._taken: set[Future[Any]] = set()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The function's result."""
        future = self._pool.submit(work, *arguments)
        self._taken.add(future)
        future.add_done_callback(self._taken.discard)
        return await asyncio.wrap_future(future)

    def close(self) -> bool:
        """Take no more work; False if a function still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not any(future.running() for future in list(self._taken))
