"""The bounded queue of jobs, and which ids are known."""

import hashlib
import threading
from collections import OrderedDict, deque

from engine.errors import Cancelled
from engine.generate import Failed
from engine.jobs import Job
from engine.refusals import DuplicateJob, QueueFull, ShuttingDown

QUEUE_LIMIT = 16
REMEMBERED_IDS = 16_384
"""Ids of finished jobs that /cancel still knows; older ones are forgotten."""


class JobQueue:
    """First come, first served: one job runs, at most `limit` wait. Every method is thread-safe."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._active: dict[str, Job] = {}
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no new job is taken."""
        return self._closed

    @property
    def depth(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Append a job; raises DuplicateJob, QueueFull or ShuttingDown."""
        job_id = job.label.job_id
        with self._changed:
            if self._closed:
                raise ShuttingDown("the engine is shutting down: send the request elsewhere")
            if job_id is not None and job_id in self._active:
                raise DuplicateJob("job_id", "job_id: a job with this id is queued or running")
            if len(self._waiting) + (self._running is not None) > self._limit:
                raise QueueFull(f"{self._limit} jobs wait already: retry later")
            self._waiting.append(job)
            if job_id is not None:
                self._active[job_id] = job
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Job | None:
        """The next job, now running; None after the timeout, or where there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            if not self._waiting:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def done(self, job: Job) -> None:
        """The job is over: its id is free again, and remembered."""
        with self._changed:
            self._forget(job)
            self._changed.notify_all()

    def cancel(self, job_id: str, reason: str) -> tuple[bool, Job | None]:
        """Whether this id was ever seen; and the job if it was waiting: it is then the caller's."""
        with self._changed:
            job = self._active.get(job_id)
            if job is None:
                return _digest(job_id) in self._finished, None
            return True, self._withdraw(job, reason)

    def abandon(self, job: Job, reason: str) -> Job | None:
        """Cancel this very job; returned if it was waiting (it is then the caller's)."""
        with self._changed:
            return self._withdraw(job, reason)

    def close(self, reason: str) -> list[Job]:
        """Take no more; the waiting jobs, cancelled, are the caller's."""
        with self._changed:
            self._closed = True
            withdrawn = [job for job in list(self._waiting) if self._withdraw(job, reason)]
            self._changed.notify_all()
            return withdrawn

    def cancel_running(self, reason: str) -> None:
        """Cancel the job that runs."""
        with self._changed:
            if self._running is not None:
                self._running.cancel(reason)

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether no job ran any more before the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, timeout_s)

    def _withdraw(self, job: Job, reason: str) -> Job | None:
        job.cancel(reason)
        if job not in self._waiting:
            return None
        self._waiting.remove(job)
        self._forget(job)
        job.ending = Failed(Cancelled(f"the job was cancelled: {job.cancelled_by}"))
        return job

    def _forget(self, job: Job) -> None:
        if self._running is job:
            self._running = None
        job_id = job.label.job_id
        if job_id is None:
            return
        if self._active.get(job_id) is job:
            del self._active[job_id]
        self._finished[_digest(job_id)] = None
        if len(self._finished) > REMEMBERED_IDS:
            self._finished.popitem(last=False)


def _digest(job_id: str) -> bytes:
    return hashlib.blake2b(job_id.encode(), digest_size=16).digest()
