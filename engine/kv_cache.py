"""KV cache: pages within a budget, sequences that grow page by page, shared prefixes.

A page holds a fixed number of positions of every layer. Full pages of a prompt may be kept after
their sequence closed and shared with a later one whose prompt starts with the same tokens; they
are the first to go when memory is short.
"""

import mmap
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from engine.errors import OutOfMemory

MAX_KEPT_PAGES = 64
Prefix = tuple[int, ...]


class Page:
    """Zeroed anonymous memory, returned to the system as soon as nobody uses it."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, size_bytes)
        self.address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        self.users = 1

    def close(self) -> None:
        """Unmap the memory; `address` is invalid from here on."""
        self._memory.close()


class PagePool:
    """At most `capacity_bytes` of pages, in use or kept for a shared prefix."""

    def __init__(self, page_bytes: int, page_positions: int, capacity_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.page_positions = page_positions
        self.capacity_pages = capacity_bytes // page_bytes
        self.n_pages = 0
        self._kept: OrderedDict[Prefix, Page] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """Bytes of all pages, kept ones too."""
        return self.n_pages * self.page_bytes

    def allocate(self) -> Page:
        """A fresh page; OutOfMemory when the budget is exhausted and nothing kept can go."""
        while self.n_pages >= self.capacity_pages and self._drop_oldest():
            continue
        if self.n_pages >= self.capacity_pages:
            raise OutOfMemory(
                f"the KV cache is exhausted ({self.capacity_pages} pages of "
                f"{self.page_positions} positions); shorten the request or raise --kv-cache-mb",
                required_bytes=self.page_bytes,
                available_bytes=0,
            )
        page = Page(self.page_bytes)
        self.n_pages += 1
        return page

    def release(self, page: Page) -> None:
        """Give up one use of a page."""
        page.users -= 1
        if page.users == 0:
            page.close()
            self.n_pages -= 1

    def _drop_oldest(self) -> bool:
        for prefix, page in self._kept.items():
            if page.users == 1:
                del self._kept[prefix]
                self.release(page)
                return True
        return False

    def keep(self, prefix: Prefix, page: Page) -> None:
        """Keep a full page for later prompts that start with `prefix`, its last token included."""
        if prefix in self._kept:
            self._kept.move_to_end(prefix)
            return
        page.users += 1
        self._kept[prefix] = page
        if len(self._kept) > MAX_KEPT_PAGES:
            self.release(self._kept.popitem(last=False)[1])

    def shared(self, prefix: Prefix) -> Page | None:
        """The kept page whose last position ends `prefix`, now used once more."""
        page = self._kept.get(prefix)
        if page is not None:
            page.users += 1
            self._kept.move_to_end(prefix)
        return page

    def close(self) -> None:
        """Forget all kept pages."""
        while self._kept:
            self.release(self._kept.popitem()[1])


class PagedSequence:
    """The tokens of one request and the pages that hold their keys and values."""

    def __init__(self, pool: PagePool, max_positions: int, *, cache_prompt: bool) -> None:
        n_pages = -(-max_positions // pool.page_positions)
        self.page_table = np.zeros(n_pages, np.int64)
        self.token_ids: list[int] = []
        self.cached_tokens = 0
        self._pool = pool
        self._pages: list[Page] = []
        self._cache_prompt = cache_prompt
        self._n_prompt = 0
        self._closed = False

    @property
    def n_tokens(self) -> int:
        """Positions whose keys and values are stored."""
        return len(self.token_ids)

    def reuse(self, prompt: Sequence[int]) -> int:
        """Take kept pages of a shared prefix; returns their positions, never the whole prompt."""
        self._n_prompt = len(prompt)
        size = self._pool.page_positions
        while self._cache_prompt and self.n_tokens + size < len(prompt):
            prefix = tuple(prompt[: self.n_tokens + size])
            page = self._pool.shared(prefix)
            if page is None:
                break
            self._append(page)
            self.token_ids = list(prefix)
        self.cached_tokens = self.n_tokens
        return self.cached_tokens

    def _append(self, page: Page) -> None:
        self.page_table[len(self._pages)] = page.address
        self._pages.append(page)

    def reserve(self, n_positions: int) -> None:
        """Have pages for this many positions; OutOfMemory leaves the sequence as it was."""
        while len(self._pages) * self._pool.page_positions < n_positions:
            self._append(self._pool.allocate())

    def close(self) -> None:
        """Keep or free the pages; idempotent."""
        if self._closed:
            return
        self._closed = True
        size = self._pool.page_positions
        for index, page in enumerate(self._pages):
            end = (index + 1) * size
            if self._cache_prompt and end <= min(self._n_prompt, self.n_tokens):
                self._pool.keep(tuple(self.token_ids[:end]), page)
            self._pool.release(page)
        self._pages.clear()
