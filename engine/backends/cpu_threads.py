"""A team of threads that runs instruction tables without the GIL.

The caller's thread is member 0. The others wait in native code: they spin for some microseconds,
then sleep on a condition variable until the next job. Within a job, members take units of an
instruction from a shared counter and meet at barriers; which member computes a unit never changes
its result.
"""

import threading
from typing import Any

import numpy as np
from numba import njit, types

from engine.backends.cpu_jit import (
    address_of, as_i64, atomic_add, atomic_load, atomic_store, call_kernel, pause,
)  # fmt: skip

ADDRESS, BARRIER, UNITS_FIXED, UNITS_PER_TOKEN, UNITS_LIMIT = range(5)
ROW_WORDS = 40
ROW_BYTES = 8 * ROW_WORDS

GENERATION, ARRIVED, STOP, ARRIVED_BEFORE, FIRST, END, TABLE, COUNTERS, STATE, N_THREADS = range(
    0, 80, 8
)
CONTROL_WORDS = 128
MUTEX, CONDITION = 256, 512

SPINS_BETWEEN_JOBS = 1500
SPINS_AT_BARRIER = 3000
GRABS_PER_THREAD = 6

_lock = types.ExternalFunction("pthread_mutex_lock", types.int32(types.uintp))
_unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.uintp))
_wait = types.ExternalFunction("pthread_cond_wait", types.int32(types.uintp, types.uintp))
_wake = types.ExternalFunction("pthread_cond_broadcast", types.int32(types.uintp))
_mutex_init = types.ExternalFunction("pthread_mutex_init", types.int32(types.uintp, types.uintp))
_condition_init = types.ExternalFunction("pthread_cond_init", types.int32(types.uintp, types.uintp))
_yield = types.ExternalFunction("sched_yield", types.int32())

_CONTROL = types.uintp
native = njit(nogil=True, cache=True, error_model="numpy")


@native
def _meet(control: int, target: int) -> None:
    """Wait until `target` arrivals were counted, yielding the core after a bounded spin."""
    atomic_add(np.uint64(control + ARRIVED), 1)
    spins = 0
    while atomic_load(np.uint64(control + ARRIVED)) < target:
        spins += 1
        if spins < SPINS_AT_BARRIER:
            pause()
        else:
            _yield()


@native
def _run_instruction(row: int, counter: int, state: int, scratch: int, n_threads: int) -> None:
    words = as_i64(np.uint64(row))
    n_tokens = as_i64(np.uint64(state))[0]
    units = min(words[UNITS_FIXED] + words[UNITS_PER_TOKEN] * n_tokens, words[UNITS_LIMIT])
    grain = max(1, units // (n_threads * GRABS_PER_THREAD))
    kernel = np.uint64(words[ADDRESS])
    while True:
        first = atomic_add(np.uint64(counter), grain)
        if first >= units:
            return
        last = min(units, first + grain)
        call_kernel(kernel, np.uint64(row), first, last, np.uint64(state), np.uint64(scratch))


@native
def _run_part(control: int, scratch: int) -> None:
    """One member's share of the posted job; returns when all members are done."""
    words = as_i64(np.uint64(control))
    n_threads, target = words[N_THREADS // 8], words[ARRIVED_BEFORE // 8]
    for index in range(words[FIRST // 8], words[END // 8]):
        row = words[TABLE // 8] + index * ROW_BYTES
        if as_i64(np.uint64(row))[BARRIER]:
            target += n_threads
            _meet(control, target)
        counter = words[COUNTERS // 8] + 8 * index
        _run_instruction(row, counter, words[STATE // 8], scratch, n_threads)
    _meet(control, target + n_threads)


@native
def _serve(control: int, scratch: int) -> None:
    """A member's life: wait for a job, run its share, until told to stop."""
    seen = 0
    while True:
        spins = 0
        while atomic_load(np.uint64(control + GENERATION)) == seen and spins < SPINS_BETWEEN_JOBS:
            pause()
            spins += 1
        if atomic_load(np.uint64(control + GENERATION)) == seen:
            _lock(np.uint64(control + MUTEX))
            while atomic_load(np.uint64(control + GENERATION)) == seen:
                _wait(np.uint64(control + CONDITION), np.uint64(control + MUTEX))
            _unlock(np.uint64(control + MUTEX))
        seen += 1
        if atomic_load(np.uint64(control + STOP)):
            return
        _run_part(control, scratch)


@native
def _post(control: int) -> None:
    _lock(np.uint64(control + MUTEX))
    atomic_add(np.uint64(control + GENERATION), 1)
    _wake(np.uint64(control + CONDITION))
    _unlock(np.uint64(control + MUTEX))


@native
def _run_job(control: int, scratch: int, first: int, end: int, table: int, state: int) -> None:
    words = as_i64(np.uint64(control))
    words[FIRST // 8], words[END // 8] = first, end
    words[TABLE // 8], words[STATE // 8] = table, state
    words[ARRIVED_BEFORE // 8] = words[ARRIVED // 8]
    counters = as_i64(np.uint64(words[COUNTERS // 8]))
    for index in range(first, end):
        counters[index] = 0
    if words[N_THREADS // 8] > 1:
        _post(control)
    _run_part(control, scratch)


@native
def _start(control: int) -> None:
    _mutex_init(np.uint64(control + MUTEX), np.uint64(0))
    _condition_init(np.uint64(control + CONDITION), np.uint64(0))


@native
def _stop(control: int) -> None:
    atomic_store(np.uint64(control + STOP), 1)
    _post(control)


class Team:
    """`n_threads` members with `scratch_bytes` each, for tables of up to `n_instructions`."""

    def __init__(self, n_threads: int, scratch_bytes: int, n_instructions: int) -> None:
        self.n_threads = n_threads
        self._control = np.zeros(CONTROL_WORDS, np.int64)
        self._counters = np.zeros(n_instructions, np.int64)
        self._scratch = [np.zeros(scratch_bytes, np.uint8) for _ in range(n_threads)]
        self._address = address_of(self._control)
        self._control[N_THREADS // 8] = n_threads
        self._control[COUNTERS // 8] = address_of(self._counters)
        _start(self._address)
        self._members = [self._member(index) for index in range(1, n_threads)]

    @property
    def nbytes(self) -> int:
        """Bytes of scratch and control."""
        return sum(scratch.nbytes for scratch in self._scratch) + self._counters.nbytes

    def _member(self, index: int) -> threading.Thread:
        arguments = (self._address, address_of(self._scratch[index]))
        thread = threading.Thread(target=_serve, args=arguments, name=f"cpu-{index}", daemon=True)
        thread.start()
        return thread

    def run(self, table: np.ndarray[Any, Any], first: int, end: int, state_address: int) -> None:
        """Run instructions [first, end) of a table for the tokens that the state tells."""
        scratch = address_of(self._scratch[0])
        _run_job(self._address, scratch, first, end, address_of(table), state_address)

    def close(self) -> None:
        """End the members; idempotent."""
        if self._members:
            _stop(self._address)
            for member in self._members:
                member.join()
            self._members = []
