"""The generation thread: it alone drives the runtime, one job after another."""

import os
import threading
import time
import traceback
from typing import Any

from engine.backends import Runtime
from engine.errors import Cancelled, EngineError, InferenceTimeout, InternalError, OutOfMemory
from engine.generate import End, Failed, TextCodec
from engine.job_queue import JobQueue
from engine.jobs import GenerationJob, Job
from engine.metrics import WorkerMetrics
from engine.narration import Narrate
from engine.vitals import Vitals

_OUTCOMES: dict[type[EngineError], str] = {
    Cancelled: "cancelled",
    InferenceTimeout: "timeout",
    OutOfMemory: "out_of_memory",
}
_MEMORY_EVERY_S = 0.005
_FOREVER_S = 3600.0


class Worker(threading.Thread):
    """Runs the queue's jobs until it is closed, and verifies residency in between."""

    def __init__(
        self,
        runtime: Runtime,
        codec: TextCodec,
        narrate: Narrate,
        *,
        inference_timeout_s: float,
        residency_check_s: float,
    ) -> None:
        super().__init__(name="generation", daemon=True)
        self.queue = JobQueue()
        self.metrics = WorkerMetrics()
        self.vitals = Vitals(runtime.memory())
        self._runtime = runtime
        self._codec = codec
        self._narrate = narrate
        self._inference_timeout_s = inference_timeout_s
        self._residency_check_s = residency_check_s
        self._next_residency_s = time.monotonic() + (residency_check_s or float("inf"))
        self._next_memory_s = 0.0

    def run(self) -> None:
        """Serve jobs; returns when the queue is closed and empty."""
        while True:
            idle_s = self._next_residency_s - time.monotonic()
            job = self.queue.take(min(max(idle_s, 0.0), _FOREVER_S))
            if job is not None:
                self._serve(job)
            elif self.queue.closed:
                return
            self._verify_residency_if_due()

    def cancel(self, job_id: str, reason: str) -> bool:
        """Cancel by id; False for an id never seen. Any thread."""
        seen, waiting = self.queue.cancel(job_id, reason)
        self._account_withdrawn(waiting)
        return seen

    def abandon(self, job: Job, reason: str) -> None:
        """Cancel this job wherever it is. Any thread."""
        self._account_withdrawn(self.queue.abandon(job, reason))

    def drain(self) -> None:
        """Take no more jobs and end the waiting ones. Any thread."""
        for job in self.queue.close("the engine is shutting down"):
            self._account_withdrawn(job)

    def _serve(self, job: Job) -> None:
        job.begin(self._inference_timeout_s)
        self._tell_start(job)
        error = self._run(job)
        self._refresh_memory()
        if error is None:
            self.vitals.succeeded()
        else:
            job.ending = Failed(error)
            self.vitals.failed(error)
        self.queue.done(job)
        self._account(job, error)
        job.finish()

    def _run(self, job: Job) -> EngineError | None:
        def checkpoint() -> None:
            job.checkpoint()
            if time.monotonic() >= self._next_memory_s:
                self._refresh_memory()

        try:
            job.run(self._runtime, self._codec, checkpoint)
        except EngineError as error:
            return error
        except MemoryError:
            free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            message = "host memory is used up"
            return OutOfMemory(message, required_bytes=0, available_bytes=free_bytes)
        except Exception as error:  # a defect of ours must not end the process
            return InternalError(f"the engine failed in {_where(error)}")
        return None

    def _refresh_memory(self) -> None:
        self.vitals.measured(self._runtime.memory())
        self._next_memory_s = time.monotonic() + _MEMORY_EVERY_S

    def _verify_residency_if_due(self) -> None:
        if time.monotonic() < self._next_residency_s:
            return
        begun = time.monotonic()
        self._next_residency_s = begun + self._residency_check_s
        error: EngineError | None = None
        try:
            self._runtime.verify_residency()
        except EngineError as found:
            error = found
        self.vitals.residency(error)
        self._narrate(
            "residency_check",
            "Weights are where they belong" if error is None else "Weights are not resident",
            action="verify",
            target="weights",
            level="info" if error is None else "error",
            duration_ms=_ms(time.monotonic() - begun),
            **({} if error is None else {"error_kind": error.code, "message": error.message}),
        )

    def _account_withdrawn(self, job: Job | None) -> None:
        if job is not None and isinstance(job.ending, Failed):
            self._account(job, job.ending.error)
            job.finish()

    def _account(self, job: Job, error: EngineError | None) -> None:
        since_s = job.record.begun_s or job.record.accepted_s
        duration_s = time.monotonic() - since_s
        outcome = "ok" if error is None else _OUTCOMES.get(type(error), "error")
        self.metrics.finished(outcome, duration_s)
        numbers = {**_numbers(job), "duration_ms": _ms(duration_s)}
        if error is None:
            self._tell_end(job, numbers)
        elif isinstance(error, Cancelled):
            self._tell_cancel(job, numbers)
        else:
            self._tell_error(job, error, numbers)

    def _tell_start(self, job: Job) -> None:
        kind = "completion" if isinstance(job, GenerationJob) else "scoring"
        self._narrate(
            "execute_start",
            f"Starts a {kind} of {job.record.tokens_in} tokens",
            action="execute",
            target=kind,
            correlation_id=job.label.correlation_id,
            **_numbers(job),
        )

    def _tell_end(self, job: Job, numbers: dict[str, Any]) -> None:
        reason = {"finish_reason": job.ending.finish_reason} if isinstance(job.ending, End) else {}
        self._narrate(
            "execute_end",
            f"Finishes a job with {job.record.tokens_out} tokens",
            action="execute",
            target="job",
            correlation_id=job.label.correlation_id,
            **numbers,
            **reason,
        )

    def _tell_cancel(self, job: Job, numbers: dict[str, Any]) -> None:
        self._narrate(
            "cancel",
            f"Cancels a job after {job.record.tokens_out} tokens",
            action="cancel",
            target="job",
            correlation_id=job.label.correlation_id,
            reason=job.cancelled_by or "the client fell behind",
            **numbers,
        )

    def _tell_error(self, job: Job, error: EngineError, numbers: dict[str, Any]) -> None:
        self._narrate(
            "error",
            f"Ends a job with {error.code}: {error.message}",
            action="execute",
            target="job",
            level="error",
            correlation_id=job.label.correlation_id,
            error_kind=error.code,
            code=error.code,
            message=error.message,
            **numbers,
        )


def _numbers(job: Job) -> dict[str, Any]:
    """The fields of a job's narration line that are known by now."""
    label, record = job.label, job.record
    fields = {
        "job_id": label.job_id,
        "prompt_sha256": label.prompt_sha256,
        "tokens_in": record.tokens_in,
        "tokens_out": None if record.begun_s is None else record.tokens_out,
        "ttft_ms": _rounded(record.ttft_ms),
        "prefill_ms": _rounded(record.prefill_ms),
        "decode_ms": _rounded(record.decode_ms),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 3)


def _ms(duration_s: float) -> float:
    return round(duration_s * 1e3, 3)


def _where(error: Exception) -> str:
    """The kind of an unexpected error and the line that raised it, never its message."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if "engine" in f.filename), frames[-1])
    return f"{last.name}, line {last.lineno}: {type(error).__name__}"
