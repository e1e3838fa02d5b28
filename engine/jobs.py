"""Jobs: what the generation thread is asked to do, and what it tells while doing it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.backends import Checkpoint, Runtime
from engine.errors import Cancelled, InferenceTimeout
from engine.generate import (
    TERMINAL,
    Event,
    Failed,
    GenerationRequest,
    Metrics,
    Scored,
    Started,
    TextCodec,
    Token,
    generate,
)


class Sink(Protocol):
    """Where a job's events go."""

    def put(self, event: Event) -> None: ...


class Listener(Protocol):
    """Who else hears of a job's tokens."""

    def token(self) -> None: ...

    def first_text(self, ttft_s: float) -> None: ...


@dataclass(frozen=True)
class JobLabel:
    """Who asked for what; `job_id` is None for work that has no id of its own."""

    correlation_id: str
    job_id: str | None = None
    prompt_sha256: str | None = None


@dataclass
class JobRecord:
    """What a job did so far; seconds are of the monotonic clock."""

    accepted_s: float = field(default_factory=time.monotonic)
    begun_s: float | None = None
    started: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    ttft_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None


class Job(ABC):
    """One unit of work; `cancel` may be called from any thread, the rest by one at a time.

    `run` leaves the terminal event in `ending`; `finish` sends it, after all was accounted for.
    """

    def __init__(self, label: JobLabel, sink: Sink, tokens_in: int) -> None:
        self.label = label
        self.record = JobRecord(tokens_in=tokens_in)
        self.ending: Event | None = None
        self.cancelled_by: str | None = None
        self._sink = sink
        self._timeout_s = float("inf")
        self._deadline_s = float("inf")

    def cancel(self, reason: str) -> None:
        """Stop the job at its next checkpoint; the first reason stays."""
        self.cancelled_by = self.cancelled_by or reason

    def begin(self, timeout_s: float) -> None:
        """The job leaves the queue and has this long."""
        self.record.begun_s = time.monotonic()
        self._timeout_s = timeout_s
        self._deadline_s = self.record.begun_s + timeout_s

    def checkpoint(self) -> None:
        """Raise Cancelled or InferenceTimeout if the job must stop."""
        if self.cancelled_by is not None:
            raise Cancelled(f"the job was cancelled: {self.cancelled_by}")
        if time.monotonic() > self._deadline_s:
            raise InferenceTimeout(f"the job ran longer than {self._timeout_s:g} s")

    @abstractmethod
    def run(self, runtime: Runtime, codec: TextCodec, checkpoint: Checkpoint) -> None:
        """Do the work; an EngineError says why it ended early."""

    def finish(self) -> None:
        """Send the terminal event."""
        if self.ending is not None:
            self._sink.put(self.ending)


class GenerationJob(Job):
    """A completion."""

    def __init__(
        self, label: JobLabel, sink: Sink, request: GenerationRequest, listener: Listener
    ) -> None:
        super().__init__(label, sink, len(request.prompt_ids))
        self.request = request
        self._listener = listener

    def run(self, runtime: Runtime, codec: TextCodec, checkpoint: Checkpoint) -> None:
        """Prefill and decode, sending each event but the last."""
        generate(runtime, codec, self.request, checkpoint, self._emit)

    def finish(self) -> None:
        """Send the terminal event; a job that never began gets its Started event first."""
        if isinstance(self.ending, Failed) and not self.record.started:
            self._emit(Started(self.request.sampling.seed, self.record.tokens_in, 0))
        super().finish()

    def _emit(self, event: Event) -> None:
        if isinstance(event, Started):
            self.record.started = True
        elif isinstance(event, Token):
            self._count(event)
        elif isinstance(event, Metrics):
            self.record.prefill_ms, self.record.decode_ms = event.prefill_ms, event.decode_ms
        if isinstance(event, TERMINAL):
            self.ending = event
        else:
            self._sink.put(event)

    def _count(self, token: Token) -> None:
        self.record.tokens_out += 1
        self._listener.token()
        if token.text and self.record.ttft_ms is None:
            ttft_s = time.monotonic() - self.record.accepted_s
            self.record.ttft_ms = ttft_s * 1e3
            self._listener.first_text(ttft_s)


class ScoringJob(Job):
    """A judgement of given tokens: one prefill pass."""

    def __init__(
        self, label: JobLabel, sink: Sink, prompt_ids: Sequence[int], completion_ids: Sequence[int]
    ) -> None:
        super().__init__(label, sink, len(prompt_ids) + len(completion_ids))
        self._prompt_ids = prompt_ids
        self._completion_ids = completion_ids

    def run(self, runtime: Runtime, codec: TextCodec, checkpoint: Checkpoint) -> None:
        """Score the completion."""
        scores = runtime.score(self._prompt_ids, self._completion_ids, checkpoint)
        self.ending = Scored(tuple(scores))
