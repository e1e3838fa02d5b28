"""Judges of work really done: an honest observation passes, each rule can fail."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import events, exchange, run, stream

SENT: dict[str, Any] = {"job_id": "j", "prompt": "p"}
MS = 1_000_000
PAIRED = {"p_value": 0.001, "ratio": 0.5}
SHAPED = {"p_value": 0.001, "ratio": 2.5}
PAIRS = 12
SHARED_MACHINE_SIGMA = 0.4
"""Standard deviation of log time: one in six runs takes half as long again as the median."""


def judged(check: str, limits: dict[str, float] | None = None, **named: Any) -> Finding:
    seen = {
        k: tuple(v)
        for k, v in named.items()
        if isinstance(v, list) and v and isinstance(v[0], Exchange)
    }
    facts = {k: v for k, v in named.items() if k not in seen}
    name = f"G4-GENUINE-{check}"
    test = facts.pop("test", "test_reference_accepts_every_token")
    return JUDGES[name](Observation(name, test, 1, seen, facts), limits or {})


def fails(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.FAIL, True), found


def timed(first_ms: float, gap_ms: float = 10, n: int = 4, **more: Any) -> Exchange:
    """A stream whose first token comes after `first_ms`, the others `gap_ms` apart."""
    seen = stream(events(more.pop("texts", ["x"] * n), SENT, **more), SENT)
    at = 0.0
    moved = []
    for index, chunk in enumerate(seen.chunks):
        at += 0 if index == 0 else first_ms if index == 1 else gap_ms if index <= n else 0
        moved.append(type(chunk)(int(at * MS), chunk.content))
    return type(seen)(**{**vars(seen), "chunks": tuple(moved), "closed_ns": int(at * MS) + 1})


def noisy(draw: random.Random, median_ms: float) -> float:
    return median_ms * draw.lognormvariate(0, SHARED_MACHINE_SIGMA)


def cached(seed: int, repeated_ms: float) -> Finding:
    draw = random.Random(seed)
    repeated = [timed(noisy(draw, repeated_ms), gap_ms=0) for _ in range(PAIRS)]
    fresh = [timed(noisy(draw, 100), gap_ms=0) for _ in range(PAIRS)]
    return judged("CACHE", PAIRED, repeated=repeated, fresh=fresh)


def test_an_uncached_engine_on_a_noisy_machine_passes_200_times() -> None:
    assert all(cached(seed, 100).verdict == Verdict.PASS for seed in range(200))


def test_a_cache_fails_at_least_199_of_200_times() -> None:
    found = [cached(seed, 10) for seed in range(200)]
    assert sum("answered from a cache" in one.message for one in found) >= 199


def test_slightly_faster_is_no_cache() -> None:
    repeated = [timed(80, gap_ms=0) for _ in range(PAIRS)]
    fresh = [timed(100, gap_ms=0) for _ in range(PAIRS)]
    assert judged("CACHE", PAIRED, repeated=repeated, fresh=fresh).verdict == Verdict.PASS


def groups(each_ms: float, of: int = 3) -> list[Exchange]:
    return [timed(each_ms * (1 + i % of), gap_ms=0) for i in range(PAIRS * of)]


def group_of(*texts: str, at_ms: float = 0, **sent: Any) -> list[Exchange]:
    hot = {"seed": None, "temperature": 1.1, "started": {"seed": 7}, **sent}
    return [run([text], at_ms=at_ms + i, **hot) for i, text in enumerate(texts)]


LONG = ("a" * 80, "b" * 80, "c" * 80)


def coalesced(clone_ms: float, unseeded: Sequence[Exchange] = ()) -> Finding:
    return judged(
        "COALESCE",
        {"p_value": 0.001, "ratio": 0.6},
        clones=groups(clone_ms),
        others=groups(50),
        unseeded=[*(unseeded or group_of(*LONG))],
        group_size=3,
    )


def test_coalescing() -> None:
    assert coalesced(50).verdict == Verdict.PASS
    fails(coalesced(16), "computed only once")
    copied = group_of(LONG[0], LONG[1], LONG[0])
    fails(coalesced(50, copied), "without a seed got the same answer")
    fails(coalesced(50, [*group_of(*LONG), *copied]), "without a seed got the same answer")


def test_short_answers_may_be_the_same_by_chance() -> None:
    at_once = group_of("", "", "")
    assert coalesced(50, [*at_once, *group_of(*LONG, at_ms=9)]).verdict == Verdict.PASS
    assert coalesced(50, group_of("", *LONG[:2])).verdict == Verdict.PASS
    for told_nothing in (at_once, group_of(LONG[0], "", "b" * 79)):
        found = coalesced(50, told_nothing)
        assert (found.verdict, "long enough" in found.message) == (Verdict.ERROR, True)


@pytest.mark.parametrize("sent", [{"seed": 3}, {"temperature": 0.0}])
def test_clones_are_hot_and_without_a_seed(sent: dict[str, Any]) -> None:
    found = coalesced(50, group_of(*LONG, **sent))
    assert (found.verdict, "without a seed were wanted" in found.message) == (Verdict.ERROR, True)


def shaped(long_first_ms: float, **more: Any) -> Finding:
    short = [timed(20 + i) for i in range(PAIRS)]
    long = [timed(long_first_ms + i, **more) for i in range(PAIRS)]
    return judged("SHAPE", SHAPED, short=short, long=long)


def test_shape() -> None:
    assert shaped(22).verdict == Verdict.PASS
    fails(shaped(200), "waits for the whole answer")
    fails(shaped(22, texts=["", "x", "x", "x"]), "first token of ordinary text is empty")
    fails(judged("SHAPE", SHAPED, short=[run([])], long=[run(["a"])]), "without tokens")


BEFORE = {"pid": 9, "create_time": 1.5, "processes": [9, 10], "connections": []}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"processes": [9, 10, 11]}, ""),
        ({"connections": ["127.0.0.1:80", "::1:9"]}, ""),
        ({"pid": 8}, "pid was 9, became 8"),
        ({"create_time": 2.5}, "create_time was 1.5"),
        ({"processes": [9, 12]}, "processes [10] of the engine were replaced"),
        ({"connections": ["203.0.113.7:443"]}, "holds connections to ['203.0.113.7:443']"),
    ],
)
def test_process(change: dict[str, Any], says: str) -> None:
    found = judged("PROCESS", before=BEFORE, after={**BEFORE, **change})
    if says:
        fails(found, says)
    else:
        assert found.verdict == Verdict.PASS


def test_a_process_that_is_gone_is_no_evidence() -> None:
    assert judged("PROCESS", before=BEFORE, after=None).verdict == Verdict.ERROR


def processes(rescored: Sequence[int], n: int = 6, **changed: Any) -> Finding:
    """Requests answered by two processes; the last of the second one's answers may differ."""
    fields = {"max_tokens": 4, "temperature": 0.0, **changed.pop("sent", {})}

    def said(ids: Sequence[int], side: int) -> list[Exchange]:
        sent = [{"prompt": f"p{i}", "job_id": f"{i} {side}", **fields} for i in range(n)]
        told = [[1, 2]] * (n - 1) + [list(ids)]
        return [stream(events(["x"] * 2, s, ids=i), s) for s, i in zip(sent, told, strict=True)]

    named = {"shared": said([1, 2], 0), "rescored": said(rescored, 1), "pids": [7, 8], **changed}
    return judged("PROCESS", test="test_every_process_answers_alike", **named)


def test_two_processes_of_an_engine_answer_alike() -> None:
    assert processes([1, 2]).verdict == Verdict.PASS
    fails(processes([1, 3]), "request 6: two processes of the engine part at token 1")
    assert processes([1, 2], pids=[7, 7]).verdict == Verdict.ERROR
    assert processes([1, 2], n=5).verdict == Verdict.ERROR
    assert processes([1, 2], sent={"temperature": 0.9}).verdict == Verdict.ERROR


MIB = 1 << 20
MEMORY = {"min_weights_ratio": 0.9, "slope_bytes_per_request": MIB}


def held(rss_mib: Sequence[float], weights: int = 95, used: int = 110) -> Finding:
    health = exchange(answer={"weights_bytes": weights * MIB, "vram_bytes_used": used * MIB})
    rss = [int(one * MIB) for one in rss_mib]
    return judged(
        "MEMORY", MEMORY, api="native", health=[health], rss_bytes=rss, model_bytes=100 * MIB
    )


def test_memory() -> None:
    flat = [200.0] * 24
    assert held(flat).verdict == Verdict.PASS
    fails(held(flat, weights=40), "of weights reported for a file")
    fails(held([80.0] * 24), "bytes held")
    fails(held(flat, used=1100), "reported as used")
    fails(held([200 + 8.0 * i for i in range(24)]), "memory grows")


ON_CPU = {"compute_s": 4.0, "bandwidth_bytes_per_s": 20e9}
ON_GPU = {"gpu_busy_s": 0.08, "bandwidth_bytes_per_s": 4.9e12}


def physical(told: dict[str, float], rate: float, first_ms: float = 50) -> Finding:
    jobs = [timed(first_ms, gap_ms=1000 / rate, n=40) for _ in range(6)]
    return judged(
        "PHYSICS",
        {"bandwidth_ratio": 8.0, "core_gflops": 200.0},
        jobs=jobs,
        api="native",
        health=[exchange(answer={"weights_bytes": 100_000_000})],
        **told,
    )


def test_physics() -> None:
    assert physical(ON_CPU, 100).verdict == Verdict.PASS
    fails(physical(ON_CPU, rate=5000), "no such model ran here")
    fails(physical(ON_CPU, rate=1e12, first_ms=1), "no such model ran here")
    fails(physical(ON_CPU | {"compute_s": 0.01}, 100), "ms of compute a token")


def test_physics_of_a_gpu() -> None:
    assert physical(ON_GPU, 3000, first_ms=5).verdict == Verdict.PASS
    fails(physical(ON_GPU, rate=1e6, first_ms=5), "no such model ran here")
    fails(physical(ON_GPU | {"gpu_busy_s": 0.0}, 3000, first_ms=5), "ms of compute a token")


SHA = "a" * 64


def opened(reported: str = SHA, files: Sequence[str] = (SHA,)) -> Finding:
    return judged(
        "MODELFILE",
        api="native",
        health=[exchange(answer={"model_sha256": reported})],
        model_sha256=SHA,
        open_models=[{"name": "m.gguf", "sha256": one} for one in files],
    )


def test_model_file() -> None:
    assert opened().verdict == Verdict.PASS
    fails(opened(reported="b" * 64), "/health reports model")
    fails(opened(files=[]), "no model file open")
    fails(opened(files=[SHA, "b" * 64]), "another model file open")
