"""Judges of performance: what they pass, and that each rule can fail; baselines kept on disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.baseline import baseline_of, files_of, kept_path, replace_last, timing_of
from harness.checklist import load_checklists
from harness.experiment import ExperimentConfig
from harness.gates import JudgeContext
from harness.judges import JUDGES
from harness.observation import Exchange, Observation, Verdict
from harness.session import GateSession, Nonce
from tests.unit.recorded import MS, events, exchange, run, stream

ERROR = Verdict.ERROR
LIMITS = {
    "ratio": 0.1,
    "p95_ms": 10.0,
    "parse_ms": 1.0,
    "min_tokens_per_s": 20.0,
    "load_s": 60.0,
    "small_load_s": 10.0,
    "shutdown_s": 5.0,
    "min_requests": 10,
    "growth_bytes": 100,
}
ABOUT = {"device": "cpu", "model": "m", "model_sha256": "5a"}


def judged(name: str, **named: Any) -> Any:
    wrapped = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items()}
    seen = {k: v for k, v in wrapped.items() if v and isinstance(v[0], Exchange)}
    facts = {k: v for k, v in named.items() if k not in seen}
    id_ = name if name.startswith("G4") else f"G4-PERF-{name}"
    return JUDGES[id_](Observation(id_, "t", 1, seen, facts), LIMITS)


def fails(found: Any, says: str, verdict: Verdict = Verdict.FAIL) -> None:
    assert (found.verdict, says in found.message) == (verdict, True), found


def jobs(late_ms: float = 0, slow: int = 1, n: int = 10) -> tuple[Exchange, ...]:
    """Ten streams; the first token after 2 ms and `late_ms`, gaps of `slow` ms."""
    found = []
    for number in range(n):
        seen = run(["a", "b", "c"], at_ms=1000 + number * 100)
        start = seen.sent_ns
        chunks = tuple(
            replace(chunk, arrival_ns=start + (chunk.arrival_ns - start) * slow)
            for chunk in seen.chunks
        )
        found.append(replace(seen, chunks=chunks, sent_ns=start - int(late_ms * MS)))
    return tuple(found)


def baseline(seen: tuple[Exchange, ...], last: Any = None, **changed: str) -> Any:
    timings = [timing_of(one) for one in seen]
    files = files_of(timings, baseline_of(timings, ABOUT)) | changed
    return judged("BASELINE", jobs=seen, about=ABOUT, files=files, last=last or {})


def test_a_baseline_says_what_the_streams_show() -> None:
    assert "first baseline" in baseline(jobs()).message
    fails(baseline(jobs(), **{"baseline.json": "{}"}), "baseline.json is not")
    fails(baseline(jobs(), **{"baseline.csv": "x"}), "baseline.csv is not")
    fails(baseline(jobs(), **{"baseline.svg": "x"}), "no SVG")
    fails(baseline(jobs(n=3)), "3 requests", ERROR)


def test_a_baseline_is_compared_with_the_last() -> None:
    last = baseline_of([timing_of(one) for one in jobs()], ABOUT)
    assert baseline(jobs(), last).verdict == Verdict.PASS
    fails(baseline(jobs(late_ms=1), last), "ttft_ms: 1.50 times worse")
    fails(baseline(jobs(slow=2), last), "times worse than the last")
    faster = {**last, "tokens_per_s": {"p50": 2000.0}}
    fails(baseline(jobs(), faster), "tokens_per_s: 2.00 times worse")
    fails(baseline(jobs(), {**last, "device": "other"}), "another device", ERROR)


def test_baselines_are_kept_by_device_and_model(tmp_path: Path) -> None:
    now = baseline_of([timing_of(one) for one in jobs()], ABOUT)
    assert replace_last(now, tmp_path) is None
    assert replace_last(now | {"tokens": 1}, tmp_path) == json.loads(json.dumps(now))
    assert replace_last(now | {"device": "gpu"}, tmp_path) is None
    kept_path(now, tmp_path).write_text("{damaged")
    assert replace_last(now, tmp_path) is None


def ttft(**changed: Any) -> Any:
    refused = tuple(exchange("/execute", {}, sent={}, status=400, took_ms=2.5) for _ in "abc")
    named = {"jobs": jobs(), "health": (exchange(), exchange()), "refused": refused}
    return judged("TTFT", **(named | changed))


def test_time_to_first_token() -> None:
    assert ttft().numbers["parse_ms"] == 0.5
    fails(ttft(jobs=jobs(late_ms=20)), "TTFT 22.0 ms p95")
    slow = exchange("/execute", {}, sent={}, status=400, took_ms=9)
    fails(ttft(refused=slow), "parsing 7.00 ms")
    fails(ttft(refused=exchange()), "wanted status 400")
    fails(ttft(jobs=tuple(run([], at_ms=n) for n in range(10))), "no stream has a token")


def test_gaps_and_rate() -> None:
    assert judged("ITL", jobs=jobs()).numbers["p95_ms"] == 1
    fails(judged("ITL", jobs=jobs(slow=11)), "ITL 11.0 ms p95")
    assert judged("RATE", jobs=jobs()).numbers["tokens_per_s"] == 1000
    fails(judged("RATE", jobs=jobs(slow=100)), "10.0 tokens/s, wanted 20")
    single = tuple(run(["a"], at_ms=n) for n in range(10))
    fails(judged("ITL", jobs=single), "two tokens")
    fails(judged("RATE", jobs=single), "two tokens")


def load(ready_s: float = 3.0, told_ms: float = 2000, size: int = 1, lines: int = 1) -> Any:
    line = json.dumps({"event": "model_load_complete", "duration_ms": told_ms})
    return judged("LOAD", ready_s=ready_s, model_bytes=size, log_lines=[line] * lines)


def test_load() -> None:
    assert load().verdict == Verdict.PASS
    assert load(30, size=2 << 30).verdict == Verdict.PASS
    fails(load(30), "ready after 30.0 s, wanted 10 s")
    fails(load(61, size=2 << 30), "wanted 60 s")
    fails(load(told_ms=4000), "load took 4.00 s, it was 3.00 s")
    fails(load(lines=0), "0 model_load_complete lines")


def shutdown(**changed: Any) -> Any:
    named = {
        "shutdown": exchange("/shutdown", {}, sent={}, status=202),
        "took_s": 1.0,
        "exit_code": 0,
        "state": "idle",
    }
    return judged("SHUTDOWN", **(named | changed))


def test_shutdown() -> None:
    sent = {"job_id": "j", "prompt": "p"}
    said = events(["a"], sent)
    error = ("error", {"code": "CANCELLED", "message": "m", "retriable": False})
    cancelled = stream([*said[:2], error], sent)
    broken = stream([*said[:2], ("error", {**error[1], "code": "INTERNAL"})], sent)
    assert shutdown().verdict == Verdict.PASS
    assert shutdown(state="busy", job=cancelled).verdict == Verdict.PASS
    assert shutdown(state="busy", job=stream(said, sent)).verdict == Verdict.PASS
    fails(shutdown(took_s=5.1), "after 5.1 s, wanted 5 s")
    fails(shutdown(exit_code=1), "exit code 1")
    fails(shutdown(shutdown=exchange("/shutdown", {}, sent={})), "wanted status 202")
    fails(shutdown(state="busy", job=broken), "got INTERNAL")
    fails(shutdown(state="busy", job=stream(said[:2], sent)), "no terminal event")
    fails(shutdown(state="busy"), "no exchange named 'job'", ERROR)


def leak(change: dict[str, float], held: int = 0, **more: Any) -> Any:
    first = {"anonymous_bytes": 1000, "threads": 4, "open_files": 2}
    last = {name: value + change.get(name, 0) for name, value in first.items()}
    named = {
        "jobs": jobs(),
        "samples": [first] * 3 + [last] * 3,
        "before": exchange(answer={"kv_bytes": 0}),
        "after": exchange(answer={"kv_bytes": held}),
    }
    return judged("LEAK", **(named | more))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"anonymous_bytes": 101}, "memory grew by 101"),
        ({"threads": 1}, "threads grew by 1"),
        ({"open_files": 1}, "open_files grew by 1"),
    ],
)
def test_leaks(change: dict[str, float], says: str) -> None:
    assert leak({"anonymous_bytes": 99}).verdict == Verdict.PASS
    fails(leak(change), says)
    fails(leak({}, held=64), "64 more KV bytes")
    fails(leak({}, jobs=jobs(n=9)), "9 requests, wanted 10")
    fails(leak({}, samples=[{}]), "1 samples", ERROR)
    unknown = [{"anonymous_bytes": None, "threads": 1, "open_files": 1}] * 6
    fails(leak({}, samples=unknown), "did not tell", ERROR)


CONFIG = ExperimentConfig(n_requests=1, max_tokens=2)
RESULT: dict[str, Any] = {
    "experiment_id": "x",
    "config": CONFIG.model_dump(mode="json"),
    "measurement_config_hash": CONFIG.measurement_config_hash,
    "measurement_methodology": "total",
    "start": "2026-01-01T00:00:00Z",
    "end": "2026-01-01T00:00:01Z",
    "total_tokens": 5,
    "input_tokens": 3,
    "output_tokens": 2,
    "total_inference_time_sec": 1.0,
    "avg_tokens_per_second": 2.0,
    **dict.fromkeys(("flops_prefill", "flops_decode", "total_energy_j", "energy_adjusted_j")),
    **dict.fromkeys(("avg_energy_per_token_j", "energy_per_device_j", "baseline_power_w")),
    **dict.fromkeys(("ttft_ms", "itl_ms", "tpot_ms", "peak_memory_bytes", "thermal_throttle")),
    "total_flops": 10,
    "energy_source": "none",
    "energy_accuracy": "no sensor",
    "steady_state_window": None,
    "warm_up": {"requests": 0, "end_to_end_ms": [], "variation": 0.0},
    "measurement_warnings": [],
    "environment_snapshot": {},
    "requests": [
        {
            "index": 0,
            "prompt_sha256": "5a",
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "sent_ns": 0,
            "token_ns": [10, 20],
        }
    ],
    "timeseries": "timeseries.parquet",
}


def measure(result: dict[str, Any] | None = None, **changed: Any) -> Any:
    named = {
        "result": RESULT | (result or {}),
        "timeseries_head": "PAR1",
        "spawned": ["git"],
        "own_cpu_s": 2.0,
        "children_cpu_s": 0.1,
        "returned_id": "x",
    }
    return judged("G4-MEASURE", **(named | changed))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"schema_version": "1.0"}, "no valid result"),
        ({"total_tokens": 6}, "do not add up"),
        ({"measurement_config_hash": "0"}, "the hash"),
        ({"avg_tokens_per_second": 3.0}, "not tokens by time"),
        ({"total_energy_j": 0.0}, "without a sensor"),
        ({"energy_accuracy": ""}, "no reason"),
        ({"energy_source": "nvml", "total_energy_j": 0.0}, "nvml measured 0.0 J"),
        ({"total_flops": 0}, "no operations"),
        ({"requests": []}, "0 of 1 requests"),
        ({"requests": [RESULT["requests"][0] | {"token_ns": [20, 10]}]}, "out of order"),
        ({"requests": [RESULT["requests"][0] | {"token_ns": [20]}]}, "has no time"),
        ({"requests": [RESULT["requests"][0] | {"token_ns": [20, 2**40]}]}, "after the end"),
    ],
)
def test_an_experiment_result(changed: dict[str, Any], says: str) -> None:
    assert measure().verdict == Verdict.PASS
    fails(measure(changed), says)


def test_an_experiment_stays_in_its_process() -> None:
    fails(measure(spawned=["git", "python3"]), "started python3")
    fails(measure(children_cpu_s=3.0), "3.00 s in others")
    fails(measure(timeseries_head="nope"), "no Parquet")
    fails(measure(returned_id="y"), "another result")


def test_what_is_reported_alone_fails_nobody() -> None:
    sessions = {
        profile: GateSession(load_checklists(), JudgeContext(profile), None, Nonce("n"))  # type: ignore[arg-type]
        for profile in ("cpu", "gpu")
    }
    assert sessions["cpu"].only_reported("G4-PERF-RATE")
    assert not sessions["gpu"].only_reported("G4-PERF-RATE")
    assert not sessions["cpu"].only_reported("G4-MEASURE")
