"""Pages stay within the budget, come back on close, and are shared by equal prefixes only."""

import pytest

from engine.errors import OutOfMemory
from engine.kv_cache import PagedSequence, PagePool

PAGE_BYTES = 4096


def pool_of(n_pages: int) -> PagePool:
    return PagePool(PAGE_BYTES, 4, n_pages * PAGE_BYTES)


def filled(pool: PagePool, prompt: list[int], *, cache: bool) -> PagedSequence:
    sequence = PagedSequence(pool, 64, cache_prompt=cache)
    reused = sequence.reuse(prompt)
    sequence.reserve(len(prompt))
    sequence.token_ids.extend(prompt[reused:])
    return sequence


def test_pages_are_allocated_as_the_sequence_grows_and_freed_on_close() -> None:
    pool = pool_of(8)
    sequence = filled(pool, list(range(9)), cache=False)
    assert pool.used_bytes == 3 * PAGE_BYTES
    sequence.close()
    sequence.close()
    assert pool.used_bytes == 0


def test_an_exhausted_budget_is_out_of_memory_and_the_next_request_is_served() -> None:
    pool = pool_of(2)
    sequence = PagedSequence(pool, 64, cache_prompt=False)
    with pytest.raises(OutOfMemory) as caught:
        sequence.reserve(9)
    assert caught.value.required_bytes == PAGE_BYTES
    sequence.close()
    filled(pool, list(range(8)), cache=False).close()
    assert pool.used_bytes == 0


def test_whole_pages_of_a_shared_prefix_are_reused() -> None:
    pool = pool_of(8)
    first = filled(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9], cache=True)
    addresses = first.page_table[:2].tolist()
    first.close()
    again = filled(pool, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11], cache=True)
    assert again.cached_tokens == 8
    assert again.page_table[:2].tolist() == addresses
    again.close()
    assert pool.used_bytes == 2 * PAGE_BYTES
    pool.close()
    assert pool.used_bytes == 0


def test_a_different_first_token_shares_nothing() -> None:
    pool = pool_of(8)
    filled(pool, [1, 2, 3, 4, 5], cache=True).close()
    other = filled(pool, [9, 2, 3, 4, 5], cache=True)
    assert other.cached_tokens == 0
    other.close()


def test_the_last_token_of_a_prompt_is_never_taken_from_the_cache() -> None:
    pool = pool_of(8)
    filled(pool, [1, 2, 3, 4, 5], cache=True).close()
    same = filled(pool, [1, 2, 3, 4], cache=True)
    assert same.cached_tokens == 0
    same.close()


def test_kept_pages_go_first_when_memory_is_short() -> None:
    pool = pool_of(2)
    filled(pool, [1, 2, 3, 4, 5], cache=True).close()
    assert pool.used_bytes == PAGE_BYTES
    filled(pool, list(range(10, 18)), cache=False).close()
    assert pool.used_bytes == 0


def test_without_cache_prompt_nothing_is_taken() -> None:
    pool = pool_of(8)
    filled(pool, [1, 2, 3, 4, 5], cache=True).close()
    plain = filled(pool, [1, 2, 3, 4, 5], cache=False)
    assert plain.cached_tokens == 0
    plain.close()
