"""What a suite hands to a judge: raw exchanges with the engine, and facts measured beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of these."""


@dataclass(frozen=True)
class Chunk:
    """Bytes of a response body as they arrived; `arrival_ns` is the harness's monotonic clock."""

    arrival_ns: int
    content: bytes


@dataclass(frozen=True)
class Exchange:
    """One HTTP request and all that came back, recorded by the harness's own transport.

    Times are monotonic nanoseconds of one clock. `status` is None where no response head came;
    `error` then says why (it may also be set after a head: the body broke off).
    """

    method: str
    path: str
    request_headers: tuple[tuple[str, str], ...]
    request_body: bytes
    sent_ns: int
    status: int | None = None
    response_headers: tuple[tuple[str, str], ...] = ()
    head_ns: int | None = None
    chunks: tuple[Chunk, ...] = ()
    closed_ns: int | None = None
    closed_by: str = "server"
    error: str | None = None

    @property
    def body(self) -> bytes:
        """The whole response body."""
        return b"".join(chunk.content for chunk in self.chunks)


@dataclass(frozen=True)
class Observation:
    """What one test saw for one check, in one attempt.

    `test` is the test's name with its parameters, e.g. `test_bound_accepted[max_tokens-2048]`: the
    id that checklists require. `exchanges` are raw; `facts` hold what HTTP cannot show (process
    numbers, challenge words, log lines), never a conclusion.
    """

    check: str
    test: str
    attempt: int = 1
    exchanges: Mapping[str, tuple[Exchange, ...]] = field(default_factory=dict)
    facts: Mapping[str, Json] = field(default_factory=dict)


class Verdict(StrEnum):
    """A check's verdict, from best to worst in the order of declaration."""

    NOT_APPLICABLE = "not_applicable"
    PASS = "pass"  # noqa: S105
    WAIVED = "waived"
    NOT_RUN = "not_run"
    ERROR = "error"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """A judge's verdict on one observation, the sentence that says why, and the numbers behind."""

    verdict: Verdict
    message: str
    numbers: Mapping[str, Json] = field(default_factory=dict)


Limits = Mapping[str, float]
"""A check's limits from its checklist, by name with unit, already scaled for the profile."""

Judge = Callable[[Observation, Limits], Finding]
"""A pure function: equal observations and limits give equal findings, at run time and offline."""

Observe = Callable[..., None]
"""The fixture `observe(**named)`: exchanges and facts by name, once for each attempt."""
