"""Cores for several workers: each has its own, so that no worker's engine slows another's answers.

An engine takes as many threads as it may run at once, and threads that wait for one another are
slow where others run in between.
"""

import os
from collections.abc import Sequence


def cores_of(worker: int, workers: int, cores: Sequence[int]) -> set[int]:
    """Every `workers`-th core from this worker's on; one that it shares where they do not suffice.

    Sibling threads of a core are usually numbered half of all apart, so they stay together.
    """
    known = sorted(cores)
    place = worker % workers
    return set(known[place::workers] or [known[place % len(known)]])


def keep_to_own_cores(worker: int, workers: int) -> None:
    """Run this process, and what it launches from now on, on its own cores, where systems can."""
    if workers > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of(worker, workers, sorted(os.sched_getaffinity(0))))
