"""A team of threads that runs instruction tables without the GIL.

The caller's thread is member 0. The others wait in native code: they spin for some microseconds,
then sleep on a condition variable until the next job. Within a job, members take units of an
instruction from a shared counter; an instruction behind a barrier starts when all units before it
are *done*, so a member that the system has suspended holds nobody up unless it holds a unit.
Which member computes a unit never changes its result.

A counter holds (job << 32 | units); a member late from an earlier job sees the other job number
and leaves without touching anything.
"""

import threading
from typing import Any

import numpy as np
from numba import njit, types

from engine.backends.cpu_jit import (
    address_of,
    as_i64,
    atomic_add,
    atomic_load,
    atomic_replace,
    atomic_store,
    call_kernel,
    pause,
)  # fmt: skip

ADDRESS, BARRIER, UNITS_FIXED, UNITS_PER_TOKEN, UNITS_LIMIT = range(5)
ROW_WORDS = 40
ROW_BYTES = 8 * ROW_WORDS

JOB, STOP, FIRST, END, TABLE, TAKEN, DONE, STATE, N_THREADS, N_INSTRUCTIONS = range(10)
CONTROL_WORDS = 128
MUTEX_BYTES, CONDITION_BYTES = 256, 512
JOB_SHIFT = 32
UNITS_MASK = (1 << JOB_SHIFT) - 1

SPINS_BETWEEN_JOBS = 1500
SPINS_AT_BARRIER = 2000
GRABS_PER_THREAD = 6

_lock = types.ExternalFunction("pthread_mutex_lock", types.int32(types.uintp))
_unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.uintp))
_wait = types.ExternalFunction("pthread_cond_wait", types.int32(types.uintp, types.uintp))
_wake = types.ExternalFunction("pthread_cond_broadcast", types.int32(types.uintp))
_mutex_init = types.ExternalFunction("pthread_mutex_init", types.int32(types.uintp, types.uintp))
_condition_init = types.ExternalFunction("pthread_cond_init", types.int32(types.uintp, types.uintp))
_yield = types.ExternalFunction("sched_yield", types.int32())

native = njit(nogil=True, cache=True, error_model="numpy")


@native
def _units(row: int, state: int) -> int:
    words = as_i64(np.uint64(row))
    n_tokens = as_i64(np.uint64(state))[0]
    units: int = min(words[UNITS_FIXED] + words[UNITS_PER_TOKEN] * n_tokens, words[UNITS_LIMIT])
    return units


@native
def _take_units(
    row: int, taken: int, done: int, state: int, scratch: int, job: int, grain: int
) -> bool:
    """Run free units of one instruction until none is left; False if the job is over."""
    units = _units(row, state)
    kernel = np.uint64(as_i64(np.uint64(row))[ADDRESS])
    while True:
        counted = atomic_load(np.uint64(taken))
        if counted >> JOB_SHIFT != job:
            return False
        first = counted & UNITS_MASK
        if first >= units:
            return True
        last = min(units, first + grain)
        if atomic_replace(np.uint64(taken), counted, counted + last - first):
            call_kernel(kernel, np.uint64(row), first, last, np.uint64(state), np.uint64(scratch))
            atomic_add(np.uint64(done), last - first)


@native
def _await(done: int, units: int, job: int) -> bool:
    """Wait until an instruction is done, then yielding; False if the job is over."""
    spins = 0
    while True:
        counted = atomic_load(np.uint64(done))
        if counted >> JOB_SHIFT != job:
            return False
        if counted & UNITS_MASK >= units:
            return True
        spins += 1
        if spins < SPINS_AT_BARRIER:
            pause()
        else:
            _yield()


@native
def _await_all(done: int, table: int, state: int, first: int, end: int, job: int) -> bool:
    for index in range(first, end):
        if not _await(done + 8 * index, _units(table + index * ROW_BYTES, state), job):
            return False
    return True


@native
def _run_part(control: int, scratch: int, job: int) -> None:
    """One member's share of a job; returns when all is done or the job is over.

    What it reads of the job is the job's own if its counters, read last, still are: a late member
    may find an index of one table and the address of another.
    """
    words = as_i64(np.uint64(control))
    first = atomic_load(np.uint64(control + 8 * FIRST))
    end = atomic_load(np.uint64(control + 8 * END))
    table = atomic_load(np.uint64(control + 8 * TABLE))
    state = atomic_load(np.uint64(control + 8 * STATE))
    all_taken, all_done = words[TAKEN], words[DONE]
    if atomic_load(np.uint64(all_taken + 8 * first)) >> JOB_SHIFT != job:
        return
    pending, grabs = first, words[N_THREADS] * GRABS_PER_THREAD
    for index in range(first, end):
        row, offset = table + index * ROW_BYTES, 8 * index
        if as_i64(np.uint64(row))[BARRIER]:
            if not _await_all(all_done, table, state, pending, index, job):
                return
            pending = index
        grain = max(1, _units(row, state) // grabs)
        if not _take_units(row, all_taken + offset, all_done + offset, state, scratch, job, grain):
            return
    _await_all(all_done, table, state, pending, end, job)


@native
def _serve(control: int, scratch: int) -> None:
    """A member's life: wait for a job, run its share, until told to stop."""
    job_word, mutex = np.uint64(control + 8 * JOB), np.uint64(control + MUTEX_BYTES)
    seen = 0
    while True:
        spins = 0
        while atomic_load(job_word) == seen and spins < SPINS_BETWEEN_JOBS:
            pause()
            spins += 1
        if atomic_load(job_word) == seen:
            _lock(mutex)
            while atomic_load(job_word) == seen:
                _wait(np.uint64(control + CONDITION_BYTES), mutex)
            _unlock(mutex)
        seen = atomic_load(job_word)
        if atomic_load(np.uint64(control + 8 * STOP)):
            return
        _run_part(control, scratch, seen)


@native
def _post(control: int) -> None:
    _lock(np.uint64(control + MUTEX_BYTES))
    atomic_add(np.uint64(control + 8 * JOB), 1)
    _wake(np.uint64(control + CONDITION_BYTES))
    _unlock(np.uint64(control + MUTEX_BYTES))


@native
def _open_counters(control: int) -> None:
    """Make every counter belong to the next job, so that late members leave the finished one."""
    words = as_i64(np.uint64(control))
    fresh = (words[JOB] + 1) << JOB_SHIFT
    for index in range(words[N_INSTRUCTIONS]):
        atomic_store(np.uint64(words[TAKEN] + 8 * index), fresh)
        atomic_store(np.uint64(words[DONE] + 8 * index), fresh)
    atomic_add(np.uint64(control + 8 * JOB), 0)


@native
def _run_job(control: int, scratch: int, first: int, end: int) -> None:
    words = as_i64(np.uint64(control))
    words[FIRST], words[END] = first, end
    _post(control)
    _run_part(control, scratch, words[JOB])
    _open_counters(control)


@native
def _start(control: int) -> None:
    _mutex_init(np.uint64(control + MUTEX_BYTES), np.uint64(0))
    _condition_init(np.uint64(control + CONDITION_BYTES), np.uint64(0))
    _open_counters(control)


@native
def _stop(control: int) -> None:
    atomic_store(np.uint64(control + 8 * STOP), 1)
    _post(control)


class Team:
    """`n_threads` members with `scratch_bytes` each, for tables of up to `n_instructions`."""

    def __init__(self, n_threads: int, scratch_bytes: int, n_instructions: int) -> None:
        self.n_threads = n_threads
        self._control = np.zeros(CONTROL_WORDS, np.int64)
        self._counters = np.zeros((2, n_instructions), np.int64)
        self._scratch = [np.zeros(scratch_bytes, np.uint8) for _ in range(n_threads)]
        self._address = address_of(self._control)
        self._control[N_THREADS] = n_threads
        self._control[TAKEN] = address_of(self._counters[0])
        self._control[DONE] = address_of(self._counters[1])
        self._control[N_INSTRUCTIONS] = n_instructions
        _start(self._address)
        self._members = [self._member(index) for index in range(1, n_threads)]

    @property
    def nbytes(self) -> int:
        """Bytes of scratch and control."""
        return sum(scratch.nbytes for scratch in self._scratch) + self._counters.nbytes

    def _member(self, index: int) -> threading.Thread:
        thread = threading.Thread(
            target=self._live, args=(index,), name=f"cpu-{index}", daemon=True
        )
        thread.start()
        return thread

    def _live(self, index: int) -> None:
        """A member's whole life; its frame keeps what it waits on, even where nobody closes it."""
        _serve(self._address, address_of(self._scratch[index]))

    def run(self, table: np.ndarray[Any, Any], first: int, end: int, state_address: int) -> None:
        """Run instructions [first, end) of a table for the tokens that the state tells."""
        self._control[TABLE] = address_of(table)
        self._control[STATE] = state_address
        _run_job(self._address, address_of(self._scratch[0]), first, end)

    def close(self) -> None:
        """End the members; idempotent."""
        if self._members:
            _stop(self._address)
            for member in self._members:
                member.join()
            self._members = []
