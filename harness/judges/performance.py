"""Judges of speed, load, shutdown and leaks, and of an experiment's result."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from harness.baseline import as_csv, as_json, baseline_of, timing_of
from harness.errors import UsageError
from harness.experiment import ExperimentResult
from harness.judges.http import narration
from harness.judges.rule import (
    Broken,
    Unseen,
    body,
    exchange,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    status,
)
from harness.judges.stream import failed, finished, read_stream
from harness.metrics import RequestTiming, decode_tokens_per_s, percentiles
from harness.observation import Exchange, Finding, Judge, Limits, Observation

SMALL_MODEL_BYTES: Final = 1 << 30
MIN_REQUESTS: Final = 10
SNAPSHOT_PROGRAMS: Final = frozenset({"git"})
"""What an environment snapshot may run beside the experiment."""


def _timings(observation: Observation) -> list[RequestTiming]:
    jobs = exchanges(observation, "jobs")
    for job in jobs:
        finished(job)
    if len(jobs) < MIN_REQUESTS:
        raise Unseen(f"{len(jobs)} requests, wanted {MIN_REQUESTS}")
    return [timing_of(job) for job in jobs]


@judge
def baseline(observation: Observation, limits: Limits) -> Finding:
    """The files say what the streams show, and nothing is much worse than the last time."""
    timings, about = _timings(observation), fact(observation, "about")
    files, last = fact(observation, "files"), fact(observation, "last")
    now = baseline_of(timings, about)
    need(files["baseline.json"] == as_json(now), "baseline.json is not what the streams show")
    need(files["baseline.csv"] == as_csv(timings), "baseline.csv is not what the streams show")
    need("<svg" in files["baseline.svg"][:2000], "baseline.svg is no SVG")
    if not last:
        return passed("the first baseline of this device and model", **now)
    for name in ("device", "model_sha256"):
        if last[name] != about[name]:
            raise Unseen(f"the last baseline has another {name}")
    ratio = limit(limits, "ratio")
    slower = {
        "ttft_ms": now["ttft_ms"]["p50"] / last["ttft_ms"]["p50"],
        "itl_ms": now["itl_ms"]["p50"] / last["itl_ms"]["p50"],
        "tokens_per_s": last["tokens_per_s"]["p50"] / now["tokens_per_s"]["p50"],
    }
    for name, factor in slower.items():
        need(factor <= 1 + ratio, f"{name}: {factor:.2f} times worse than the last baseline")
    return passed("no worse than the last baseline", **now, ratios=slower)


@judge
def ttft(observation: Observation, limits: Limits) -> Finding:
    """The first non-empty token, and what a refusal takes longer than a request without a body."""
    found = percentiles([t.ttft_ms for t in _timings(observation) if t.ttft_ms is not None])
    if found is None:
        raise Broken("no stream has a token")
    plain = [_took_ms(seen, 200) for seen in exchanges(observation, "health")]
    refused = [_took_ms(seen, 400) for seen in exchanges(observation, "refused")]
    parse_ms = max(0.0, statistics.median(refused) - statistics.median(plain))
    bound_ms, parse_bound_ms = limit(limits, "p95_ms"), limit(limits, "parse_ms")
    need(found.p95 < bound_ms, f"TTFT {found.p95:.1f} ms p95, wanted below {bound_ms:g} ms")
    need(parse_ms < parse_bound_ms, f"parsing {parse_ms:.2f} ms, wanted {parse_bound_ms:g} ms")
    return passed(
        f"TTFT {found.p95:.1f} ms p95, parsing {parse_ms:.2f} ms",
        p50_ms=found.p50,
        p95_ms=found.p95,
        parse_ms=parse_ms,
    )


def _took_ms(seen: Exchange, wanted_status: int) -> float:
    status(seen, wanted_status)
    assert seen.closed_ns is not None
    return (seen.closed_ns - seen.sent_ns) / 1e6


@judge
def itl(observation: Observation, limits: Limits) -> Finding:
    """Gaps between non-empty tokens."""
    found = percentiles([gap for t in _timings(observation) for gap in t.itl_ms])
    if found is None:
        raise Broken("no stream has two tokens")
    bound_ms = limit(limits, "p95_ms")
    need(found.p95 <= bound_ms, f"ITL {found.p95:.1f} ms p95, wanted {bound_ms:g} ms")
    return passed(f"ITL {found.p95:.1f} ms p95", p50_ms=found.p50, p95_ms=found.p95)


@judge
def rate(observation: Observation, limits: Limits) -> Finding:
    """The median over requests of the tokens a second after the first."""
    rates = [r for t in _timings(observation) if (r := decode_tokens_per_s(t)) is not None]
    need(bool(rates), "no stream has two tokens")
    median, least = statistics.median(rates), limit(limits, "min_tokens_per_s")
    need(median >= least, f"{median:.1f} tokens/s, wanted {least:g}")
    return passed(f"{median:.1f} tokens/s", tokens_per_s=median)


@judge
def load(observation: Observation, limits: Limits) -> Finding:
    """From launch to the first answer; the narration's own duration is no longer than that."""
    ready_s, size = fact(observation, "ready_s"), fact(observation, "model_bytes")
    bound_s = limit(limits, "small_load_s" if size < SMALL_MODEL_BYTES else "load_s")
    told = [
        line
        for line in narration(fact(observation, "log_lines"))
        if line.get("event") == "model_load_complete"
    ]
    need(len(told) == 1, f"narration: {len(told)} model_load_complete lines, wanted one")
    load_s = float(told[0]["duration_ms"]) / 1e3
    need(0 < load_s <= ready_s, f"narration: load took {load_s:.2f} s, it was {ready_s:.2f} s")
    need(ready_s <= bound_s, f"ready after {ready_s:.1f} s, wanted {bound_s:g} s")
    return passed(f"ready after {ready_s:.2f} s", ready_s=ready_s, load_s=load_s)


@judge
def shutdown(observation: Observation, limits: Limits) -> Finding:
    """Accepted, over in time, exit code 0; a job that ran ended with a terminal event."""
    status(exchange(observation, "shutdown"), 202)
    took_s, bound_s = fact(observation, "took_s"), limit(limits, "shutdown_s")
    need(took_s <= bound_s, f"the process ended after {took_s:.1f} s, wanted {bound_s:g} s")
    code = fact(observation, "exit_code")
    need(code == 0, f"exit code {code}, wanted 0")
    state = fact(observation, "state")
    if state == "busy":
        job = exchange(observation, "job")
        stream = read_stream(job)
        if stream.error is not None:
            failed(job, "CANCELLED")
    return passed(f"ended after {took_s:.2f} s ({state})", took_s=took_s)


@judge
def leak(observation: Observation, limits: Limits) -> Finding:
    """After many requests memory, threads, files and KV are where they were."""
    jobs, least = exchanges(observation, "jobs"), limit(limits, "min_requests")
    need(len(jobs) >= least, f"{len(jobs)} requests, wanted {least:.0f}")
    for job in jobs:
        finished(job)
    samples = fact(observation, "samples")
    if len(samples) < 6:
        raise Unseen(f"{len(samples)} samples, wanted 6")
    grown = _growth([one["anonymous_bytes"] for one in samples])
    bound = limit(limits, "growth_bytes")
    need(grown <= bound, f"memory grew by {grown:.0f} bytes, at most {bound:.0f}")
    for name in ("threads", "open_files"):
        more = _growth([one[name] for one in samples])
        need(more < 1, f"{name} grew by {more:.0f}")
    held = [body(exchange(observation, name))["kv_bytes"] for name in ("before", "after")]
    need(held[1] <= held[0], f"{held[1] - held[0]} more KV bytes are held")
    return passed(f"{len(jobs)} requests, memory grew by {grown:.0f} bytes", growth_bytes=grown)


def _growth(values: Sequence[float | None]) -> float:
    """The median of the last third less that of the first."""
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        raise Unseen("the system did not tell a number of the process")
    third = len(known) // 3
    return statistics.median(known[-third:]) - statistics.median(known[:third])


@judge
def measure(observation: Observation, limits: Limits) -> Finding:
    """The result is valid, adds up, invents nothing, and was made in this process."""
    try:
        result = ExperimentResult.model_validate(fact(observation, "result"))
    except (ValidationError, UsageError) as error:
        raise Broken(f"result.json is no valid result: {error}") from None
    need(result.experiment_id == fact(observation, "returned_id"), "another result was written")
    _adds_up(result)
    _invents_nothing(result)
    need(fact(observation, "timeseries_head") == "PAR1", "timeseries.parquet is no Parquet file")
    strange = sorted(set(fact(observation, "spawned")) - SNAPSHOT_PROGRAMS)
    need(not strange, f"the experiment started {', '.join(strange)}")
    own_s, others_s = fact(observation, "own_cpu_s"), fact(observation, "children_cpu_s")
    need(own_s > others_s, f"{own_s:.2f} s of CPU in this process, {others_s:.2f} s in others")
    return passed(
        f"{len(result.requests)} requests at {result.avg_tokens_per_second:.1f} tokens/s",
        tokens_per_s=result.avg_tokens_per_second,
    )


def _adds_up(result: ExperimentResult) -> None:
    config, requests = result.config, result.requests
    need(result.measurement_config_hash == config.measurement_config_hash, "the hash is another's")
    need(len(requests) == config.n_requests, f"{len(requests)} of {config.n_requests} requests")
    tokens_in = sum(request.prompt_tokens for request in requests)
    tokens_out = sum(request.completion_tokens for request in requests)
    said = (result.input_tokens, result.output_tokens, result.total_tokens)
    need(said == (tokens_in, tokens_out, tokens_in + tokens_out), f"tokens do not add up: {said}")
    need(tokens_out > 0, "nothing was generated")
    for request in requests:
        times = [request.sent_ns, *request.token_ns]
        need(times == sorted(times), f"request {request.index}: times are out of order")
        need(len(request.token_ns) == request.completion_tokens, "a token has no time")
    rate = tokens_out / result.total_inference_time_sec
    need(abs(result.avg_tokens_per_second - rate) < 1e-6 * rate, "the rate is not tokens by time")
    last_ns = max(request.token_ns[-1] for request in requests if request.token_ns)
    need(last_ns <= result.total_inference_time_sec * 1e9, "a token came after the end")


def _invents_nothing(result: ExperimentResult) -> None:
    joules = result.total_energy_j
    if result.energy_source == "none":
        need(joules is None, f"{joules} J without a sensor")
        need(bool(result.energy_accuracy), "no reason is given for the missing energy")
    else:
        need(joules is None or joules > 0, f"{result.energy_source} measured {joules} J")
    need(result.total_flops is None or result.total_flops > 0, "no operations were counted")


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-PERF-BASELINE": baseline,
    "G4-PERF-TTFT": ttft,
    "G4-PERF-ITL": itl,
    "G4-PERF-RATE": rate,
    "G4-PERF-LOAD": load,
    "G4-PERF-SHUTDOWN": shutdown,
    "G4-PERF-LEAK": leak,
    "G4-MEASURE": measure,
}
