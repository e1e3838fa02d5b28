"""Judges of cancellation: what they pass, and that each rule can fail."""

from dataclasses import replace
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Observation, Verdict
from tests.unit.recorded import MS, events, exchange, run, stream

LIMITS = {
    "min_trials": 2,
    "p95_ms": 100.0,
    "free_s": 5.0,
    "growth_bytes": 10,
    "p_value": 0.2,
    "ratio": 1.5,
}


def judged(name: str, test: str = "t", **named: Any) -> Any:
    wrapped = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items()}
    seen = {k: v for k, v in wrapped.items() if isinstance(v[0], Exchange)}
    facts = {k: v for k, v in named.items() if k not in seen}
    observation = Observation(f"G4-CANCEL-{name}", test, 1, seen, facts)
    return JUDGES[f"G4-CANCEL-{name}"](observation, LIMITS)


def fails(found: Any, says: str, verdict: Verdict = Verdict.FAIL) -> None:
    assert (found.verdict, says in found.message) == (verdict, True), found


def cancelled(job_id: str, texts: int = 1, at_ms: float = 0, **error: Any) -> Exchange:
    sent = {"job_id": job_id, "prompt": "p", "max_tokens": 8}
    told = events(["a"] * texts, sent)[:-2]
    fields = {"code": "CANCELLED", "message": "m", "retriable": False, **error}
    return stream([*told, ("error", fields)], sent, at_ms)


def cancel(job_id: str, at_ms: float = 1, status: int = 202) -> Exchange:
    return exchange("/cancel", {}, sent={"job_id": job_id}, status=status, at_ms=at_ms)


def metrics(tokens: float = 0, jobs: float = 0, at_ms: float = 0) -> Exchange:
    text = f'worker_tokens_generated_total {tokens}\nworker_requests_total{{outcome="cancelled"}} '
    return exchange("/metrics", f"{text}{jobs}\n".encode(), at_ms=at_ms)


def trials(**changed: Any) -> dict[str, Any]:
    named = {
        "before": metrics(10),
        "after": metrics(12),
        "later": metrics(12),
        "jobs": (cancelled("a"), cancelled("b")),
        "cancels": (cancel("a"), cancel("b")),
    }
    return named | changed


def test_stopped_jobs() -> None:
    assert judged("STOPS", **trials()).verdict == Verdict.PASS
    fails(judged("STOPS", **trials(later=metrics(13))), "after the last cancel")
    fails(judged("STOPS", **trials(after=metrics(15), later=metrics(15))), "2 were streamed")
    whole = (cancelled("a", 8), cancelled("b"))
    fails(judged("STOPS", **trials(jobs=whole)), "all its 8 tokens")
    fails(judged("STOPS", **trials(cancels=(cancel("a"), cancel("c")))), "another job", ERROR)
    fails(judged("STOPS", **trials(cancels=(cancel("a"),))), "1 cancels for 2 jobs", ERROR)
    fails(judged("STOPS", **trials(before=exchange("/metrics", b"x 1"))), "no series", ERROR)


ERROR = Verdict.ERROR


def test_the_event_of_a_cancel() -> None:
    assert judged("EVENT", **trials()).verdict == Verdict.PASS
    other = (cancelled("a"), cancelled("b", code="INTERNAL"))
    fails(judged("EVENT", **trials(jobs=other)), "wanted error CANCELLED")
    lines = (cancelled("a"), cancelled("b", message="a\nb"))
    fails(judged("EVENT", **trials(jobs=lines)), "more than one line")
    done = (cancelled("a"), run(["a"], job_id="b"))
    fails(judged("EVENT", **trials(jobs=done)), "the job ended well")
    refused = (cancel("a"), cancel("b", status=500))
    fails(judged("EVENT", **trials(cancels=refused)), "wanted status 202")


def test_the_latency_of_a_cancel() -> None:
    assert judged("LATENCY", **trials()).numbers["p95_ms"] == 2
    late = (cancel("a", -200), cancel("b", -200))
    fails(judged("LATENCY", **trials(cancels=late)), "203.0 ms p95, wanted 100 ms")
    few = {"jobs": (cancelled("a"),), "cancels": (cancel("a"),)}
    fails(judged("LATENCY", **trials(**few)), "1 trials, wanted 2")
    afterwards = (cancel("a", 50), cancel("b"))
    fails(judged("LATENCY", **trials(cancels=afterwards)), "before it was cancelled")


def health(kv_bytes: int, used: int = 100, at_ms: float = 0) -> Exchange:
    return exchange(answer={"kv_bytes": kv_bytes, "vram_bytes_used": used}, at_ms=at_ms)


def memory(**changed: Any) -> Any:
    named = {
        "before": health(0),
        "during": (health(9),),
        "cancels": (cancel("a"),),
        "after": (health(0, at_ms=20),),
        "anonymous_bytes": [100, 105],
    }
    return judged("MEMORY", **(named | changed))


def test_memory_after_a_cancel() -> None:
    assert memory().verdict == Verdict.PASS
    assert memory(anonymous_bytes=[None, None]).verdict == Verdict.PASS
    fails(memory(after=(health(1),)), "kv_bytes is 1 after")
    fails(memory(after=(health(0, 101),)), "vram_bytes_used is 101")
    fails(memory(after=(health(0, at_ms=6000),)), "came back after 6.0 s")
    fails(memory(anonymous_bytes=[100, 111]), "11 bytes more")
    fails(memory(during=(health(0),)), "held no KV bytes", ERROR)
    fails(memory(cancels=(cancel("a", status=404),)), "wanted status 202")


def leaving(texts: int = 1, by: str = "client", started: bool = True) -> Exchange:
    sent = {"job_id": "j", "prompt": "p"}
    told = events(["a"] * texts, sent)[: texts + 1] if started else []
    return replace(stream(told, sent), closed_by=by, closed_ns=10 * MS)


def disconnect(phase: str = "decode", **changed: Any) -> Any:
    named = {
        "phase": phase,
        "before": metrics(jobs=3),
        "left": (leaving(), leaving()),
        "noticed": (metrics(jobs=4, at_ms=20), metrics(jobs=5, at_ms=20)),
    }
    return judged("DISCONNECT", **(named | changed))


def test_a_client_that_leaves() -> None:
    assert disconnect().numbers["p95_ms"] == 12
    assert disconnect("prefill", left=(leaving(0), leaving(0))).verdict == Verdict.PASS
    fails(disconnect(left=(leaving(),)), "2 /metrics for 1 clients", ERROR)
    once = metrics(jobs=4, at_ms=20)
    fails(disconnect(left=(leaving(),), noticed=(once,)), "1 trials, wanted 2")
    given_up = (metrics(jobs=3), metrics(jobs=3))
    fails(disconnect(noticed=given_up), "trial 1: 0 jobs counted as cancelled")
    fails(disconnect(noticed=(metrics(jobs=3), metrics(jobs=5))), "trial 1: 0 jobs counted")
    late = (metrics(jobs=4, at_ms=300), metrics(jobs=5, at_ms=300))
    fails(disconnect(noticed=late), "292.0 ms p95, wanted 100 ms")
    fails(disconnect("prefill"), "in phase decode", ERROR)
    fails(disconnect(left=(leaving(by="server"), leaving())), "before its client left", ERROR)
    unanswered = replace(leaving(), status=None, chunks=())
    fails(disconnect(left=(unanswered, leaving())), "no answer came in phase decode")


def test_a_client_that_left_too_late_is_counted_and_not_judged() -> None:
    late = (replace(leaving(), sent_ns=-2), replace(leaving(), sent_ns=-1))
    left = (replace(leaving(), sent_ns=-3), leaving())
    noticed = (metrics(jobs=4, at_ms=20), metrics(jobs=7, at_ms=20))
    assert disconnect(left=left, noticed=noticed, late=late).verdict == Verdict.PASS
    assert disconnect(left=left, noticed=noticed).verdict == Verdict.FAIL
    assert disconnect(left=left, noticed=noticed, late=late[:1]).verdict == Verdict.FAIL


def test_a_client_that_leaves_the_queue() -> None:
    queued = {
        "left": (leaving(started=False), leaving(started=False)),
        "noticed": (metrics(jobs=4, at_ms=20), metrics(jobs=6, at_ms=20)),
        "running": (cancelled("a", at_ms=50), cancelled("b", at_ms=50)),
    }
    assert disconnect("queued", **queued).verdict == Verdict.PASS
    ended = queued | {"running": (cancelled("a"), cancelled("b"))}
    fails(disconnect("queued", **ended), "the job ahead ended with the one that left")


def idempotent(**changed: Any) -> Any:
    unknown = {"code": "UNKNOWN_JOB", "message": "m", "retriable": False}
    named = {
        "cancelled": cancelled("a"),
        "finished": run(["x"], job_id="b"),
        "accepted": (cancel("a"), cancel("a"), cancel("b"), cancel("b")),
        "unknown": exchange("/cancel", unknown, sent={"job_id": "n"}, status=404),
        "reused": run(["x"], job_id="a"),
    }
    return judged("IDEMPOTENT", **(named | changed))


def test_repeated_cancels() -> None:
    assert idempotent().verdict == Verdict.PASS
    refused = (cancel("a"), cancel("a", status=409), cancel("b"), cancel("b"))
    fails(idempotent(accepted=refused), "wanted status 202")
    fails(idempotent(accepted=(cancel("a"), cancel("a"))), "not cancelled twice", ERROR)
    fails(idempotent(unknown=cancel("n")), "wanted status 404")
    fails(idempotent(reused=cancelled("a")), "the job failed")
    fails(idempotent(finished=cancelled("b")), "the job failed")
    fails(idempotent(cancelled=run(["x"], job_id="a")), "wanted error CANCELLED")


def phase(name: str, job: Exchange, **changed: Any) -> Any:
    named = {
        "job": job,
        "phase": name,
        "cancel": cancel("a"),
        "before": run(["x"], 1),
        "after": run(["x"], 2),
        "ahead": cancelled("z", at_ms=50),
    }
    return judged("PHASES", **(named | changed))


@pytest.mark.parametrize(
    ("name", "good", "bad", "says"),
    [
        ("queued", cancelled("a", 0), cancelled("a", 1), "gave tokens"),
        ("queued", cancelled("a", 0), cancelled("a", 0, at_ms=90), "waited for the one ahead"),
        ("prefill", cancelled("a", 0), cancelled("a", 2), "2 tokens came although"),
        ("decode", cancelled("a", 3), cancelled("a", 8), "8 of 8 tokens"),
        ("decode", cancelled("a", 3), cancelled("a", 0), "0 of 8 tokens"),
        ("finished", run(["x"], job_id="a"), cancelled("a"), "the job failed"),
    ],
)
def test_phases(name: str, good: Exchange, bad: Exchange, says: str) -> None:
    assert phase(name, good).verdict == Verdict.PASS
    fails(phase(name, bad), says)
    fails(phase(name, good, after=run(["y"], 2, ids=[7])), "around a cancel")
    fails(phase(name, good, cancel=cancel("a", status=404)), "wanted status 202")


def delayed(ms: float) -> Exchange:
    seen = run(["x"], job_id=f"d{ms}")
    return replace(seen, sent_ns=seen.sent_ns - int(ms * MS))


def queue(after: float, **changed: Any) -> Any:
    named = {
        "cancelled": (cancelled("a"), cancelled("b"), cancelled("c")),
        "plain": (run(["x"], 1), run(["x"], 2)),
        "after_plain": tuple(delayed(10 + n) for n in range(3)),
        "after_cancel": tuple(delayed(after + n) for n in range(3)),
    }
    return judged("QUEUE", "test_next_request_is_as_fast", **(named | changed))


def test_the_next_request_is_as_fast() -> None:
    assert queue(10).verdict == Verdict.PASS
    assert queue(11).verdict == Verdict.PASS
    fails(queue(30), "times later")
    fails(queue(10, plain=(cancelled("p"),)), "the job failed")
    fails(queue(10, cancelled=(run(["x"]),)), "wanted error CANCELLED")


def turns(**changed: Any) -> Any:
    named = {
        "alone": run(["x"], 1, job_id="o"),
        "job": cancelled("a", 0),
        "cancel": cancel("a"),
        "ahead": cancelled("z", at_ms=50),
        "kept": (run(["x"], 60, job_id="k"), run(["x"], 70, job_id="l")),
    }
    return judged("QUEUE", "test_the_others_keep_their_turn", **(named | changed))


def test_the_others_keep_their_turn() -> None:
    assert turns().verdict == Verdict.PASS
    swapped = (run(["x"], 70, job_id="k"), run(["x"], 60, job_id="l"))
    fails(turns(kept=swapped), "in the order they came")
    fails(turns(kept=(run(["x"], 60, job_id="k"),)), "at least two")
    other = (run(["x"], 60, job_id="k"), run(["y"], 70, job_id="l", ids=[9]))
    fails(turns(kept=other), "differs from run 1")
    fails(turns(job=cancelled("a", 1)), "gave tokens")
