"""Judges of errors, starts, seeds and repeats: what they pass, and how each rule fails."""

import json
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import exchange, run, stream


def judged(check: str, test: str, **named: Any) -> Finding:
    seen = {k: tuple(v) for k, v in named.items() if _recorded(v)}
    facts = {k: v for k, v in named.items() if not _recorded(v)}
    return JUDGES[check](Observation(check, test, 1, seen, facts), {})


def _recorded(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Exchange)


def error_stream(code: str, *, retriable: bool = True) -> Exchange:
    told = {"code": code, "message": "over", "retriable": retriable}
    return stream([("error", told)], {"job_id": "j"})


@pytest.mark.parametrize(
    ("test", "seen", "verdict"),
    [
        ("test_cancelled_event", error_stream("CANCELLED"), Verdict.PASS),
        ("test_cancelled_event", error_stream("VRAM_OOM"), Verdict.FAIL),
        ("test_cancelled_event", run(["a"]), Verdict.FAIL),
        ("test_timeout_event", error_stream("INFERENCE_TIMEOUT"), Verdict.PASS),
        ("test_timeout_event", error_stream("INFERENCE_TIMEOUT", retriable=False), Verdict.FAIL),
        ("test_timeout_event", error_stream("CANCELLED"), Verdict.FAIL),
    ],
)
def test_error_events(test: str, seen: Exchange, verdict: Verdict) -> None:
    found = judged("G1-ERRORS", test, execute=[seen], afterwards=[run(["b"], 50)])
    assert found.verdict == verdict, found.message


def refused(after: str | None = "1", *, retriable: bool = True) -> Exchange:
    told = {"code": "QUEUE_FULL", "message": "full", "retriable": retriable}
    headers = () if after is None else (("Retry-After", after),)
    return exchange("/execute", told, sent={}, status=503, headers=headers)


@pytest.mark.parametrize(
    ("served", "last", "verdict"),
    [
        (17, refused(), Verdict.PASS),
        (16, refused(), Verdict.FAIL),
        (17, refused(None), Verdict.FAIL),
        (17, refused("soon"), Verdict.FAIL),
        (17, refused(retriable=False), Verdict.FAIL),
        (17, run(["c"], 999), Verdict.FAIL),
    ],
)
def test_a_full_queue(served: int, last: Exchange, verdict: Verdict) -> None:
    jobs = [*(run(["a"], n) for n in range(served)), last]
    found = judged("G1-ERRORS", "test_full_queue", jobs=jobs)
    assert found.verdict == verdict, found.message


def ended(**changed: Any) -> dict[str, Any]:
    told = {"event": "error", "level": "error", "code": "MODEL_LOAD_FAILED", "message": "no"}
    told |= {"device": "cpu", "model_path": "m.gguf", **changed.pop("told", {})}
    plain = {"code": 1, "stdout": "", "stderr": json.dumps(told), "duration_s": 1.0}
    return {**plain, "timed_out": False, **changed}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"code": 0}, Verdict.FAIL),
        ({"code": -9, "timed_out": True}, Verdict.FAIL),
        ({"stderr": ""}, Verdict.FAIL),
        ({"stdout": "Traceback (most recent call last)"}, Verdict.FAIL),
        ({"duration_s": 31.0}, Verdict.FAIL),
        ({"told": {"code": "CUDA_ERROR"}}, Verdict.FAIL),
        ({"told": {"model_path": "other.gguf"}}, Verdict.FAIL),
        ({"told": {"level": "info"}}, Verdict.FAIL),
    ],
)
def test_failed_starts(changed: dict[str, Any], verdict: Verdict) -> None:
    facts = {"exit": ended(**changed), "model_name": "m.gguf"}
    found = judged("G1-START-FAIL", "test_start_fails[not-gguf]", **facts)
    assert found.verdict == verdict, found.message
    assert judged("G1-START-FAIL", "test_start_fails[no-case]", **facts).verdict == Verdict.ERROR


@pytest.mark.parametrize(
    ("restarted", "pids", "verdict"),
    [(["a"], [1, 2], "pass"), (["b"], [1, 2], "fail"), (["a"], [1, 1], "fail")],
)
def test_greedy_answers_survive_a_restart(
    restarted: list[str], pids: list[int], verdict: str
) -> None:
    first, second = ([run(["a"], at + n, temperature=0.0) for n in range(3)] for at in (0, 10))
    third = [run(restarted, 20 + n, temperature=0.0) for n in range(3)]
    sets = {"first": first, "second": second, "restarted": third}
    assert judged("G2-REPRODUCIBLE", "t", **sets, pids=pids).verdict == verdict
