"""Probes of work really done: paired timings, process, memory, physics, the open model file."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
)
from harness.judges.stream import Stream, finished, parts_at, read_or_nothing, same_requests
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation
from harness.significance import signed_rank_p
from harness.traffic import reproducible

NATIVE: Final = "native"
LEAST_ALIKE: Final = 6
TELLING_CHARACTERS: Final = 80
"""Shorter hot answers may be the same by chance: the default model ends 37 of 3,200 at once."""


def _duration_s(seen: Exchange) -> float:
    stream = finished(seen)
    assert stream.terminal_ns is not None
    return (stream.terminal_ns - seen.sent_ns) / 1e9


def _ttft_s(seen: Exchange) -> float:
    stream = finished(seen)
    need(bool(stream.tokens), "a stream without tokens")
    return (stream.tokens[0].arrival_ns - seen.sent_ns) / 1e9


def _not_faster(
    suspect: Sequence[float], plain: Sequence[float], limits: Limits, what: str
) -> dict[str, float]:
    """The suspect kind is not both significantly and substantially faster than the plain one."""
    p = signed_rank_p(suspect, plain)
    ratio = statistics.median(suspect) / statistics.median(plain)
    need(
        p > limit(limits, "p_value") or ratio > limit(limits, "ratio"),
        f"{what}: {ratio:.2f} of the time, p = {p:.2g}",
    )
    return {"p_value": p, "median_ratio": ratio}


@judge
def cache(observation: Observation, limits: Limits) -> Finding:
    """A repeated request takes as long as a fresh one."""
    repeated = [_duration_s(one) for one in exchanges(observation, "repeated")]
    fresh = [_duration_s(one) for one in exchanges(observation, "fresh")]
    numbers = _not_faster(repeated, fresh, limits, "repeated requests are answered from a cache")
    return passed("repeated requests are computed again", **numbers)


@judge
def coalesce(observation: Observation, limits: Limits) -> Finding:
    """Clones of one request, sent together, are each computed and each have their own draw."""
    clones, others = exchanges(observation, "clones"), exchanges(observation, "others")
    size = fact(observation, "group_size")
    together = _spans(clones, size)
    numbers = _not_faster(together, _spans(others, size), limits, "clones are computed only once")
    _drawn_apart(_groups(exchanges(observation, "unseeded"), size))
    return passed("clones are each computed", **numbers)


def _groups(seen: Sequence[Exchange], size: int) -> list[Sequence[Exchange]]:
    return [seen[i : i + size] for i in range(0, len(seen), size)]


def _spans(seen: Sequence[Exchange], size: int) -> list[float]:
    """Seconds from the first request of each group to its last terminal event."""
    return [
        (max(finished(one).terminal_ns or 0 for one in group) - min(one.sent_ns for one in group))
        / 1e9
        for group in _groups(seen, size)
    ]


def comparable(seen: Sequence[Exchange]) -> bool:
    """Whether two of these answers are long enough that only a copy makes them the same."""
    return len(_telling(map(read_or_nothing, seen))) > 1


def _telling(answers: Iterable[Stream]) -> list[str]:
    return [one.text for one in answers if len(one.text) >= TELLING_CHARACTERS]


def _drawn_apart(groups: Sequence[Sequence[Exchange]]) -> None:
    """No two long answers to one hot request without a seed are the same."""
    for group in groups:
        shared = same_requests(group, "clones without a seed")
        if shared.get("seed") is not None or not shared.get("temperature"):
            raise Unseen("clones of one hot request without a seed were wanted")
        told = _telling(map(finished, group))
        need(len(set(told)) == len(told), "clones without a seed got the same answer")
    if not any(map(comparable, groups)):
        raise Unseen("no two answers without a seed are long enough to be compared")


@judge
def shape(observation: Observation, limits: Limits) -> Finding:
    """The first token does not wait for the last, and is not empty."""
    short = [_ttft_s(one) for one in exchanges(observation, "short")]
    long = [_ttft_s(one) for one in exchanges(observation, "long")]
    p = signed_rank_p(short, long)
    ratio = statistics.median(long) / statistics.median(short)
    need(
        p > limit(limits, "p_value") or ratio < limit(limits, "ratio"),
        f"the first token waits for the whole answer: {ratio:.1f} times later for a long one "
        f"(p = {p:.2g})",
    )
    for one in exchanges(observation, "long"):
        first = finished(one).tokens[0]
        need(bool(first.text), "the first token of ordinary text is empty")
    return passed("the first token does not wait", p_value=p, median_ratio=ratio)


@judge
def process(observation: Observation, limits: Limits) -> Finding:
    """One process, from the first request to the last; sealed if it was launched so."""
    before, after = fact(observation, "before"), fact(observation, "after")
    for name in ("pid", "create_time"):
        need(before[name] == after[name], f"{name} was {before[name]}, became {after[name]}")
    gone = set(before["processes"]) - set(after["processes"])
    need(not gone, f"processes {sorted(gone)} of the engine were replaced")
    connections = after.get("connections") or []
    strange = [c for c in connections if not c.startswith(("127.", "::1", "[::1]"))]
    need(not strange, f"the engine holds connections to {strange[:2]}")
    return passed("one process over the whole run", pid=before["pid"])


@judge
def every_process(observation: Observation, limits: Limits) -> Finding:
    """The process that most probes share says what the re-scored one says."""
    first, second = fact(observation, "pids")
    if first is None or first == second:
        raise Unseen(f"processes {first} and {second}: wanted two")
    pairs = list(
        zip(exchanges(observation, "shared"), exchanges(observation, "rescored"), strict=True)
    )
    for number, (ours, other) in enumerate(pairs, 1):
        if not reproducible(same_requests((ours, other), f"request {number}")):
            raise Unseen(f"request {number} may be answered otherwise each time")
        at = parts_at(finished(ours), finished(other))
        need(at is None, f"request {number}: two processes of the engine part at token {at}")
    if len(pairs) < LEAST_ALIKE:
        raise Unseen(f"{len(pairs)} requests, wanted {LEAST_ALIKE}")
    return passed(f"two processes answer {len(pairs)} requests alike")


def _reported(observation: Observation) -> Mapping[str, Json]:
    """What /health says; nothing where the engine's API, told as a fact, has no such route."""
    if fact(observation, "api") != NATIVE:
        return {}
    return body(exchange(observation, "health"))


def _weights_bytes(observation: Observation) -> int:
    """The bytes of weights as reported, or where the API reports none the model file's size."""
    health = _reported(observation)
    return int(health["weights_bytes"] if health else fact(observation, "model_bytes"))


@judge
def memory(observation: Observation, limits: Limits) -> Finding:
    """Resident memory holds the weights, as reported, and does not grow with cancels."""
    health, rss = _reported(observation), fact(observation, "rss_bytes")
    model_bytes = fact(observation, "model_bytes")
    weights = _weights_bytes(observation)
    need(
        weights >= limit(limits, "min_weights_ratio") * model_bytes,
        f"{weights} bytes of weights reported for a file of {model_bytes}",
    )
    device_bytes = observation.facts.get("device_bytes")
    held = rss[0] if device_bytes is None else device_bytes
    need(held >= 0.9 * weights, f"{held} bytes held, {weights} bytes of weights")
    reported = health.get("vram_bytes_used", 0)
    need(reported <= 1.1 * held, f"{reported} bytes reported as used, {held} are held")
    half = len(rss) // 2
    slope = (statistics.median(rss[half:]) - statistics.median(rss[:half])) / max(1, half)
    bound = limit(limits, "slope_bytes_per_request")
    need(slope <= bound, f"memory grows {slope:.0f} bytes a cancelled job, at most {bound:.0f}")
    return passed("memory holds the weights and is flat", slope_bytes=slope, held_bytes=held)


@judge
def physics(observation: Observation, limits: Limits) -> Finding:
    """No faster than memory allows, and no less compute than the operations need."""
    jobs = exchanges(observation, "jobs")
    weights = _weights_bytes(observation)
    tokens = sum(finished(job).tokens_out for job in jobs)
    rate = _tokens_per_s(jobs)
    bandwidth = fact(observation, "bandwidth_bytes_per_s")
    read = rate * weights
    need(
        read <= limit(limits, "bandwidth_ratio") * bandwidth,
        f"{rate:.0f} tokens/s would read {read / 1e9:.1f} GB/s, memory gives "
        f"{bandwidth / 1e9:.1f}: no such model ran here",
    )
    floor_s, used_s = _work(observation, weights, limits)
    need(
        used_s >= floor_s * tokens,
        f"{used_s / tokens * 1e3:.3f} ms of compute a token, the operations need "
        f"{floor_s * 1e3:.3f}",
    )
    return passed(
        "rate and compute are possible", tokens_per_s=rate, compute_ms=used_s / tokens * 1e3
    )


def _work(observation: Observation, weights: int, limits: Limits) -> tuple[float, float]:
    """Seconds of work that a token needs at least, and that all took, on the GPU or the CPU."""
    if "gpu_busy_s" not in observation.facts:
        return _compute_floor_s(weights, limits), fact(observation, "compute_s")
    most = limit(limits, "bandwidth_ratio") * fact(observation, "bandwidth_bytes_per_s")
    return weights / most, fact(observation, "gpu_busy_s")


def _tokens_per_s(jobs: Sequence[Exchange]) -> float:
    """From token to token; over the whole answer where all tokens came at one moment."""
    streams = [finished(job) for job in jobs]
    spans_ns = [s.tokens[-1].arrival_ns - s.tokens[0].arrival_ns for s in streams if s.tokens]
    steps = sum(len(stream.tokens) for stream in streams) - len(spans_ns)
    if sum(spans_ns) > 0:
        return steps * 1e9 / sum(spans_ns)
    return sum(stream.tokens_out for stream in streams) / math.fsum(map(_duration_s, jobs))


def _compute_floor_s(weights_bytes: int, limits: Limits) -> float:
    """Two operations a weight, at 4.5 bits and more a weight, at the fastest core there is."""
    operations = 2 * weights_bytes * 8 / 17
    return operations / (limit(limits, "core_gflops") * 1e9)


@judge
def model_file(observation: Observation, limits: Limits) -> Finding:
    """The file that the process has open is the file that was given and is reported."""
    wanted = fact(observation, "model_sha256")
    reported = _reported(observation).get("model_sha256", wanted)
    need(reported == wanted, f"/health reports model {reported}, the file given has {wanted}")
    opened: list[Json] = fact(observation, "open_models")
    need(bool(opened), "the process has no model file open")
    strange = [one["sha256"] for one in opened if one["sha256"] != wanted]
    need(not strange, f"the process has another model file open: {strange[:1]}")
    return passed("the open file is the reported model", files=len(opened))


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-GENUINE-CACHE": cache,
    "G4-GENUINE-COALESCE": coalesce,
    "G4-GENUINE-SHAPE": shape,
    "G4-GENUINE-PROCESS": by_test(
        {
            "test_reference_accepts_every_token": process,
            "test_every_process_answers_alike": every_process,
        }
    ),
    "G4-GENUINE-MEMORY": memory,
    "G4-GENUINE-PHYSICS": physics,
    "G4-GENUINE-MODELFILE": model_file,
}
