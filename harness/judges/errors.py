"""Judges of the engine's errors: stable codes at every layer, and their shapes."""

from collections.abc import Mapping
from typing import Final

from harness.judges.rule import (
    body,
    by_test,
    exchange,
    exchanges,
    fields,
    header,
    need,
    passed,
    request,
    where,
)
from harness.judges.stream import error_body, failed, finished
from harness.observation import Finding, Judge, Limits, Observation


def _refused(observation: Observation, limits: Limits) -> Finding:
    invalid = error_body(exchange(observation, "invalid"), 400, "INVALID_REQUEST")
    need(invalid["retriable"] is False, "INVALID_REQUEST must not be retriable")
    need(invalid.get("field") == "max_tokens", f"field is {invalid.get('field')!r}")
    for name, wanted in (("no_route", 404), ("wrong_method", 405), ("too_large", 413)):
        table = body(exchange(observation, name), wanted)
        fields(table, {"code": "text", "message": "text", "retriable": "boolean"}, name)
    unknown = body(exchange(observation, "unknown_job"), 404)
    fields(unknown, {"code": "text", "message": "text"}, "POST /cancel")
    return passed("refusals before any work have their codes and shapes")


def _duplicate(observation: Observation, limits: Limits) -> Finding:
    first, second = exchange(observation, "first"), exchange(observation, "second")
    need(request(first)["job_id"] == request(second)["job_id"], "the job ids differ")
    table = body(second, 409)
    fields(table, {"code": "text", "message": "text", "retriable": "boolean"}, where(second))
    finished(first)
    finished(exchange(observation, "afterwards"))
    return passed("a duplicate of a running job is refused with 409, and the job is unharmed")


def _queue_full(observation: Observation, limits: Limits) -> Finding:
    jobs = exchanges(observation, "jobs")
    refused = [seen for seen in jobs if seen.status == 503]
    need(bool(refused), f"{len(jobs)} jobs at once and none was refused: the queue has no bound")
    for seen in refused:
        table = body(seen, 503)
        fields(table, {"code": "text", "message": "text", "retriable": "boolean"}, where(seen))
        need(table["retriable"] is True, "a full queue must be retriable")
        after = header(seen, "Retry-After")
        need(after is not None and after.isdigit(), f"Retry-After is {after!r}, wanted seconds")
    served = [seen for seen in jobs if seen.status == 200]
    need(len(served) >= 17, f"{len(served)} jobs were taken, wanted 1 + 16 in the queue")
    for seen in served:
        finished(seen)
    return passed(f"{len(served)} jobs served, {len(refused)} refused with 503 and Retry-After")


def _cancelled(observation: Observation, limits: Limits) -> Finding:
    stream = failed(exchange(observation, "execute"), "CANCELLED")
    need(stream.end is None, "a cancelled stream has an end event")
    return passed(f"the error event CANCELLED after {len(stream.tokens)} tokens")


def _timeout(observation: Observation, limits: Limits) -> Finding:
    stream = failed(exchange(observation, "execute"), "INFERENCE_TIMEOUT")
    assert stream.error is not None
    need(stream.error["retriable"] is True, "INFERENCE_TIMEOUT must be retriable")
    finished(exchange(observation, "afterwards"))
    return passed(f"the error event INFERENCE_TIMEOUT after {len(stream.tokens)} tokens")


judge_errors = by_test(
    {
        "test_refusals": _refused,
        "test_duplicate_job": _duplicate,
        "test_full_queue": _queue_full,
        "test_cancelled_event": _cancelled,
        "test_timeout_event": _timeout,
    }
)

JUDGES: Final[Mapping[str, Judge]] = {"G1-ERRORS": judge_errors}
