"""Several workers start only where the memory of all their engines is there."""

import pytest

from harness.errors import UsageError
from harness.worker_memory import needed_bytes, require_memory

GIB = 1 << 30


def test_a_worker_needs_three_engines() -> None:
    assert needed_bytes(2, GIB) == 15 * GIB


@pytest.mark.parametrize(("workers", "available"), [(1, 0), (2, 15 * GIB), (4, 30 * GIB)])
def test_workers_that_fit_may_start(workers: int, available: int) -> None:
    require_memory(workers, GIB, available)


@pytest.mark.parametrize(("available", "fitting"), [(30 * GIB - 1, 3), (8 * GIB, 1), (0, 1)])
def test_workers_that_do_not_fit_are_told_how_many_would(available: int, fitting: int) -> None:
    with pytest.raises(UsageError, match=rf"need 30\.0 GiB.*run with -n {fitting} or without"):
        require_memory(4, GIB, available)
