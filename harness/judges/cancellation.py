"""Judges of cancelled jobs and of clients that leave."""

import statistics
from collections.abc import Mapping
from typing import Final

from harness.judges.rule import (
    Unseen,
    body,
    by_test,
    exchange,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    percentile,
    request,
    status,
)
from harness.judges.stream import Stream, error_body, failed, finished, identical, read_stream
from harness.observation import Exchange, Finding, Judge, Limits, Observation
from harness.significance import signed_rank_p

CODE: Final = "CANCELLED"
CANCELLED_TOTAL: Final = 'worker_requests_total{outcome="cancelled"}'
TOKENS_TOTAL: Final = "worker_tokens_generated_total"


def counter(seen: Exchange, series: str) -> float:
    """The value of one series of a /metrics answer."""
    status(seen, 200)
    for line in seen.body.decode("utf-8").splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    raise Unseen(f"/metrics: no series {series}")


def _cancelled(observation: Observation) -> list[tuple[Exchange, Exchange, Stream]]:
    """Each cancelled job with its cancel; they are about the same job, and it ended so."""
    jobs, cancels = exchanges(observation, "jobs"), exchanges(observation, "cancels")
    if len(jobs) != len(cancels):
        raise Unseen(f"{len(cancels)} cancels for {len(jobs)} jobs")
    trials = []
    for job, cancel in zip(jobs, cancels, strict=True):
        _about(cancel, job)
        trials.append((job, cancel, failed(job, CODE)))
    return trials


def _about(cancel: Exchange, job: Exchange) -> None:
    status(cancel, 202)
    if request(cancel)["job_id"] != request(job)["job_id"]:
        raise Unseen("a cancel was about another job")


@judge
def stops(observation: Observation, limits: Limits) -> Finding:
    """No cancelled job reaches its length, and the engine generates nothing afterwards."""
    trials = _cancelled(observation)
    for job, _, stream in trials:
        wanted = request(job)["max_tokens"]
        need(len(stream.tokens) < wanted, f"a cancelled job gave all its {wanted} tokens")
    before, after, later = (
        counter(exchange(observation, name), TOKENS_TOTAL) for name in ("before", "after", "later")
    )
    seen = sum(len(stream.tokens) for _, _, stream in trials)
    most = seen + len(trials)
    need(after - before <= most, f"{after - before:.0f} tokens generated, {seen} were streamed")
    need(later == after, f"{later - after:.0f} tokens were generated after the last cancel")
    return passed(f"{len(trials)} jobs stopped after {seen} tokens", tokens=seen)


@judge
def event(observation: Observation, limits: Limits) -> Finding:
    """Each stream ends with one error event CANCELLED of one line."""
    trials = _cancelled(observation)
    for _, _, stream in trials:
        assert stream.error is not None
        message = str(stream.error["message"])
        need("\n" not in message, f"the message is more than one line: {message!r:.80}")
    return passed(f"{len(trials)} streams ended with {CODE}")


@judge
def latency(observation: Observation, limits: Limits) -> Finding:
    """From sending the cancel to the arrival of the terminal event."""
    trials = _cancelled(observation)
    wanted = limit(limits, "min_trials")
    need(len(trials) >= wanted, f"{len(trials)} trials, wanted {wanted:.0f}")
    took_ms = []
    for _, cancel, stream in trials:
        assert stream.terminal_ns is not None
        took_ms.append((stream.terminal_ns - cancel.sent_ns) / 1e6)
    need(min(took_ms) > 0, "a job had ended before it was cancelled")
    return _within(took_ms, limits, "from cancel to the terminal event")


def _within(took_ms: list[float], limits: Limits, what: str) -> Finding:
    p95_ms, bound_ms = percentile(took_ms, 95), limit(limits, "p95_ms")
    need(p95_ms <= bound_ms, f"{what}: {p95_ms:.1f} ms p95, wanted {bound_ms:g} ms")
    return passed(
        f"{what}: {p95_ms:.1f} ms p95 over {len(took_ms)} trials",
        p95_ms=p95_ms,
        p50_ms=percentile(took_ms, 50),
        trials=len(took_ms),
    )


@judge
def memory(observation: Observation, limits: Limits) -> Finding:
    """KV and total bytes grew while the job ran, and are back soon after its cancel."""
    before = body(exchange(observation, "before"))
    during, cancels = exchanges(observation, "during"), exchanges(observation, "cancels")
    bound_s, slowest_s = limit(limits, "free_s"), 0.0
    rows = zip(during, cancels, exchanges(observation, "after"), strict=True)
    for held, cancel, seen in rows:
        status(cancel, 202)
        if body(held)["kv_bytes"] <= before["kv_bytes"]:
            raise Unseen("a job in decode held no KV bytes: nothing could come back")
        for name in ("kv_bytes", "vram_bytes_used"):
            got, wanted = body(seen)[name], before[name]
            need(got <= wanted, f"{name} is {got} after the cancel, {wanted} before the job")
        assert seen.closed_ns is not None
        slowest_s = max(slowest_s, (seen.closed_ns - cancel.sent_ns) / 1e9)
    need(slowest_s <= bound_s, f"memory came back after {slowest_s:.1f} s, wanted {bound_s:g} s")
    _flat(observation, limit(limits, "growth_bytes"))
    return passed(f"memory back {slowest_s:.3f} s after a cancel, or sooner", slowest_s=slowest_s)


def _flat(observation: Observation, bound: float) -> None:
    """Anonymous memory does not grow; an attached engine's process is not seen."""
    first, last = fact(observation, "anonymous_bytes")
    if first is not None and last is not None:
        need(last - first <= bound, f"{last - first} bytes more are resident, at most {bound:.0f}")


@judge
def disconnect(observation: Observation, limits: Limits) -> Finding:
    """From the client's leaving to the first /metrics that counts the job as cancelled."""
    phase = fact(observation, "phase")
    left, noticed = exchanges(observation, "left"), exchanges(observation, "noticed")
    if len(left) != len(noticed):
        raise Unseen(f"{len(noticed)} /metrics for {len(left)} clients that left")
    before = counter(exchange(observation, "before"), CANCELLED_TOTAL)
    late = observation.exchanges.get("late", ())
    per_trial = 2 if phase == "queued" else 1
    took_ms = []
    for trial, (job, seen) in enumerate(zip(left, noticed, strict=True)):
        _left_in(phase, job)
        ended = trial * per_trial + sum(one.sent_ns < job.sent_ns for one in late)
        counted = counter(seen, CANCELLED_TOTAL) - before - ended
        need(counted == 1, f"trial {trial + 1}: {counted:.0f} jobs counted as cancelled, wanted 1")
        assert job.closed_ns is not None
        assert seen.closed_ns is not None
        took_ms.append((seen.closed_ns - job.closed_ns) / 1e6)
    wanted = limit(limits, "min_trials")
    need(len(left) >= wanted, f"{len(left)} trials, wanted {wanted:.0f}")
    _still_running(observation, phase)
    return _within(took_ms, limits, f"from leaving ({phase}) to the end of the job")


def _left_in(phase: str, job: Exchange) -> None:
    if job.closed_by != "client":
        raise Unseen("a job ended before its client left")
    if job.status is None:
        need(phase == "queued", f"no answer came in phase {phase}: {job.error}")
        return
    stream = read_stream(job, unfinished=True)
    if stream.terminal_ns is not None:
        raise Unseen("a job ended before its client left")
    shown = "decode" if stream.tokens else "prefill" if stream.started else "queued"
    if shown != phase:
        raise Unseen(f"the client left in phase {shown}, not in {phase}")


def _still_running(observation: Observation, phase: str) -> None:
    """Where the leaving job was queued, the job ahead of it went on until it was cancelled."""
    if phase != "queued":
        return
    for ahead, job in zip(
        exchanges(observation, "running"), exchanges(observation, "left"), strict=True
    ):
        stream = failed(ahead, CODE)
        assert stream.terminal_ns is not None
        assert job.closed_ns is not None
        need(stream.terminal_ns > job.closed_ns, "the job ahead ended with the one that left")


@judge
def idempotent(observation: Observation, limits: Limits) -> Finding:
    """202 however often and late, 404 for a job never seen, and no second terminal event."""
    failed(exchange(observation, "cancelled"), CODE)
    finished(exchange(observation, "finished"))
    accepted = exchanges(observation, "accepted")
    for seen in accepted:
        status(seen, 202)
    ids = [request(seen)["job_id"] for seen in accepted]
    for name in ("cancelled", "finished"):
        job_id = request(exchange(observation, name))["job_id"]
        if ids.count(job_id) < 2:
            raise Unseen(f"the {name} job was not cancelled twice")
    error_body(exchange(observation, "unknown"), 404, "UNKNOWN_JOB")
    finished(exchange(observation, "reused"))
    return passed(f"{len(accepted)} cancels of two jobs answered 202, an unknown one 404")


@judge
def phases(observation: Observation, limits: Limits) -> Finding:
    """The cancel ends the job in its phase, and leaves the next answer as it was."""
    phase = fact(observation, "phase")
    job = exchange(observation, "job")
    _about(exchange(observation, "cancel"), job)
    _PHASES[phase](observation, job)
    identical((exchange(observation, "before"), exchange(observation, "after")), "around a cancel")
    return passed(f"cancelled while {phase}; the next answer is unchanged")


def _in_queue(observation: Observation, job: Exchange) -> None:
    stream, ahead = failed(job, CODE), failed(exchange(observation, "ahead"), CODE)
    need(not stream.tokens, "the queued job gave tokens")
    assert stream.terminal_ns is not None
    assert ahead.terminal_ns is not None
    need(stream.terminal_ns < ahead.terminal_ns, "the queued job waited for the one ahead")


def _in_prefill(observation: Observation, job: Exchange) -> None:
    stream = failed(job, CODE)
    need(stream.started is not None, "the job was not started")
    need(not stream.tokens, f"{len(stream.tokens)} tokens came although prefill was cancelled")


def _in_decode(observation: Observation, job: Exchange) -> None:
    stream, wanted = failed(job, CODE), request(job)["max_tokens"]
    need(0 < len(stream.tokens) < wanted, f"{len(stream.tokens)} of {wanted} tokens came")


def _after_end(observation: Observation, job: Exchange) -> None:
    finished(job)


_PHASES: Final = {
    "queued": _in_queue,
    "prefill": _in_prefill,
    "decode": _in_decode,
    "finished": _after_end,
}


def _ttft_ms(seen: Exchange) -> float:
    stream = finished(seen)
    need(bool(stream.tokens), "a stream without tokens")
    return (stream.tokens[0].arrival_ns - seen.sent_ns) / 1e6


def _as_fast(observation: Observation, limits: Limits) -> Finding:
    """The request after a cancel is not both significantly and substantially slower."""
    for one in exchanges(observation, "cancelled"):
        failed(one, CODE)
    for one in exchanges(observation, "plain"):
        finished(one)
    plain = [_ttft_ms(one) for one in exchanges(observation, "after_plain")]
    after = [_ttft_ms(one) for one in exchanges(observation, "after_cancel")]
    p = signed_rank_p(plain, after)
    ratio = statistics.median(after) / statistics.median(plain)
    need(
        p > limit(limits, "p_value") or ratio < limit(limits, "ratio"),
        f"after a cancel the next request starts {ratio:.2f} times later, p = {p:.2g}",
    )
    return passed(
        f"after a cancel the next request starts {ratio:.2f} times as late, p = {p:.2g}",
        median_ratio=ratio,
        p_value=p,
    )


def _others(observation: Observation, limits: Limits) -> Finding:
    """One of the waiting jobs is withdrawn; the others run in their order, with their answers."""
    job, kept = exchange(observation, "job"), exchanges(observation, "kept")
    _about(exchange(observation, "cancel"), job)
    _in_queue(observation, job)
    need(len(kept) >= 2, "wanted at least two jobs that stay")
    identical((exchange(observation, "alone"), *kept), "jobs that keep their turn")
    ends = [finished(one).terminal_ns or 0 for one in kept]
    need(ends == sorted(ends), "the jobs that stayed did not run in the order they came")
    return passed(f"{len(kept)} waiting jobs kept their turn")


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-CANCEL-STOPS": stops,
    "G4-CANCEL-EVENT": event,
    "G4-CANCEL-LATENCY": latency,
    "G4-CANCEL-MEMORY": memory,
    "G4-CANCEL-DISCONNECT": disconnect,
    "G4-CANCEL-IDEMPOTENT": idempotent,
    "G4-CANCEL-PHASES": phases,
    "G4-CANCEL-QUEUE": by_test(
        {"test_next_request_is_as_fast": _as_fast, "test_the_others_keep_their_turn": _others}
    ),
}
