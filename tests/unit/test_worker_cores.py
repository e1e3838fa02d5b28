"""Workers share the cores out: none is left over, none is taken twice while they suffice."""

import os
import subprocess
import sys

import pytest

from harness.worker_cores import cores_of, keep_to_own_cores


@pytest.mark.parametrize(("workers", "n_cores"), [(1, 1), (2, 2), (2, 3), (3, 8), (4, 16)])
def test_each_core_has_one_owner(workers: int, n_cores: int) -> None:
    cores = range(4, 4 + n_cores)
    shares = [cores_of(worker, workers, cores) for worker in range(workers)]
    assert sorted(core for share in shares for core in share) == list(cores)
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


def test_more_workers_than_cores_share_them_evenly() -> None:
    assert [cores_of(worker, 5, (3, 7)) for worker in range(5)] == [{3}, {7}, {3}, {7}, {3}]


def test_a_worker_that_takes_the_place_of_a_crashed_one_has_its_share() -> None:
    assert cores_of(2, 2, range(4)) == cores_of(0, 2, range(4))


def test_siblings_stay_together() -> None:
    assert cores_of(0, 2, range(16)) == {0, 2, 4, 6, 8, 10, 12, 14}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process")
def test_what_a_worker_launches_runs_on_its_cores() -> None:
    code = (
        "import os, subprocess, sys; from harness.worker_cores import keep_to_own_cores;"
        "keep_to_own_cores(1, 2);"
        "print(sorted(os.sched_getaffinity(0)), flush=True);"
        "subprocess.run([sys.executable, '-c',"
        " 'import os; print(sorted(os.sched_getaffinity(0)))'], check=True)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = sorted(cores_of(1, 2, sorted(os.sched_getaffinity(0))))
    assert ended.stdout.splitlines() == [str(expected)] * 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process")
def test_the_only_worker_keeps_all() -> None:
    before = os.sched_getaffinity(0)
    keep_to_own_cores(0, 1)
    assert os.sched_getaffinity(0) == before
