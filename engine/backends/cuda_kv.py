"""The paged KV cache in device memory: pages of 64 positions of all layers, in slabs."""

from dataclasses import dataclass, field

import numpy as np

from engine.backends.cuda_memory import DevicePool
from engine.errors import OutOfMemory
from kernels.arrays import DeviceArray
from kernels.attention import PAGE_TOKENS

_SLAB_BYTES = 8 << 20


@dataclass
class _Slab:
    pointer: int
    free: list[int]
    n_pages: int


@dataclass
class PagePool:
    """Pages within a budget (`limit_bytes` 0 = what the device pool gives).

    Slabs come from plain allocations when they are needed and go back when they are empty.
    """

    memory: DevicePool
    page_bytes: int
    limit_bytes: int = 0
    _slabs: list[_Slab] = field(default_factory=list)
    _owners: dict[int, int] = field(default_factory=dict)
    _slab_of: dict[int, _Slab] = field(default_factory=dict)

    @property
    def pages_in_use(self) -> int:
        """Pages that a sequence or a kept prefix holds."""
        return len(self._owners)

    def take(self) -> int:
        """The address of a free page; raises OutOfMemory past the budget."""
        used = self.pages_in_use * self.page_bytes
        if self.limit_bytes and used + self.page_bytes > self.limit_bytes:
            raise OutOfMemory(
                "the KV cache budget is exhausted",
                required_bytes=self.page_bytes,
                available_bytes=max(0, self.limit_bytes - used),
            )
        slab = next((s for s in self._slabs if s.free), None) or self._new_slab()
        page = slab.free.pop()
        self._owners[page] = 1
        self._slab_of[page] = slab
        return page

    def _new_slab(self) -> _Slab:
        n_pages = max(1, _SLAB_BYTES // self.page_bytes)
        if self.limit_bytes:
            n_pages = max(1, min(n_pages, self.limit_bytes // self.page_bytes))
        try:
            pointer = self.memory.allocate(n_pages * self.page_bytes, "kv")
        except OutOfMemory:
            n_pages = 1
            pointer = self.memory.allocate(self.page_bytes, "kv")
        pages = [pointer + i * self.page_bytes for i in reversed(range(n_pages))]
        slab = _Slab(pointer, pages, n_pages)
        self._slabs.append(slab)
        return slab

    def share(self, page: int) -> None:
        """One more owner of a page."""
        self._owners[page] += 1

    def give_back(self, page: int) -> None:
        """One owner fewer; the last one frees the page, the last page its slab."""
        self._owners[page] -= 1
        if self._owners[page]:
            return
        del self._owners[page]
        slab = self._slab_of.pop(page)
        slab.free.append(page)
        if len(slab.free) == slab.n_pages:
            self._slabs.remove(slab)
            self.memory.free(slab.pointer)


@dataclass
class Prefix:
    """Whole pages of an earlier prompt, kept for requests that allow their reuse."""

    token_ids: tuple[int, ...]
    pages: list[int]


@dataclass
class CudaSequence:
    """One request's KV cache: page addresses on the host and in `table` u64[max_pages].

    Not thread-safe: one request runs at a time.
    """

    pool: PagePool
    table: DeviceArray
    cache_prompt: bool
    prefix: list[Prefix]
    token_ids: list[int] = field(default_factory=list)
    n_tokens: int = 0
    cached_tokens: int = 0
    n_prompt: int = 0
    _pages: list[int] = field(default_factory=list)
    _closed: bool = False

    def grow(self, n_tokens: int) -> None:
        """Hold pages for this many tokens; raises OutOfMemory, keeping what it had."""
        fresh: list[int] = []
        while (len(self._pages) + len(fresh)) * PAGE_TOKENS < n_tokens:
            try:
                fresh.append(self._take())
            except OutOfMemory:
                for page in fresh:
                    self.pool.give_back(page)
                raise
        if fresh:
            self._write(len(self._pages), fresh)
            self._pages += fresh

    def _take(self) -> int:
        try:
            return self.pool.take()
        except OutOfMemory:
            if not self.prefix:
                raise
            self._drop_prefix()
            return self.pool.take()

    def _drop_prefix(self) -> None:
        for page in self.prefix.pop().pages:
            self.pool.give_back(page)

    def _write(self, first: int, pages: list[int]) -> None:
        at = DeviceArray(self.table.pointer + 8 * first, "u64", (len(pages),))
        self.pool.memory.write(at, np.array(pages, np.uint64))

    def reuse_prefix(self, token_ids: tuple[int, ...]) -> int:
        """Take over kept pages that hold the start of this prompt, all but its last token.

        Returns the number of tokens taken over, a multiple of 64.
        """
        if not self.cache_prompt or not self.prefix:
            return 0
        kept = self.prefix[0]
        most = min(len(kept.token_ids), len(token_ids) - 1) // PAGE_TOKENS
        same = 0
        while same < most and _page_ids(kept.token_ids, same) == _page_ids(token_ids, same):
            same += 1
        pages = kept.pages[:same]
        for page in pages:
            self.pool.share(page)
        if pages:
            self._write(0, pages)
        self._pages = list(pages)
        self.n_tokens = self.cached_tokens = same * PAGE_TOKENS
        return self.cached_tokens

    def close(self) -> None:
        """Give the pages back; the prompt's whole pages stay if the request allowed it."""
        if self._closed:
            return
        self._closed = True
        keep = min(self.n_prompt, self.n_tokens) // PAGE_TOKENS if self.cache_prompt else 0
        if keep:
            if self.prefix:
                self._drop_prefix()
            for page in self._pages[:keep]:
                self.pool.share(page)
            ids = tuple(self.token_ids[: keep * PAGE_TOKENS])
            self.prefix.append(Prefix(ids, self._pages[:keep]))
        for page in self._pages:
            self.pool.give_back(page)
        self._pages = []


def _page_ids(token_ids: tuple[int, ...], page: int) -> tuple[int, ...]:
    return token_ids[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
