"""Judges of seeds, truncation rules, probes and correlation: each passes and fails."""

import json
import math
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation
from tests.unit.recorded import events, exchange, run, stream

SAME = "00000000-0000-4000-8000-000000000001"


def judged(check: str, test: str, limits: dict[str, float] | None = None, **named: Any) -> Finding:
    seen = {k: tuple(v) for k, v in named.items() if v and isinstance(v[0], Exchange)}
    facts = {k: v for k, v in named.items() if k not in seen}
    return JUDGES[check](Observation(check, test, 1, seen, facts), limits or {})


def drawn(seed: int, at_ms: float) -> Exchange:
    told = events(["a", "b"], {"job_id": "j"}, started={"seed": seed})
    return stream(told, {"job_id": f"at {at_ms}", "prompt": "p"}, at_ms)


@pytest.mark.parametrize(
    ("seeds", "replayed", "ids", "verdict"),
    [
        ((7, 8), (7, 8), [100, 101], "pass"),
        ((7, 7), (7, 7), [100, 101], "fail"),
        ((7, 8), (7, 9), [100, 101], "fail"),
        ((7, 8), (7, 8), [100, 102], "fail"),
    ],
)
def test_omitted_seeds(
    seeds: tuple[int, int], replayed: tuple[int, int], ids: list[int], verdict: str
) -> None:
    first = [drawn(seed, n) for n, seed in enumerate(seeds)]
    again = [run(["a", "b"], 10 + n, seed=seed, ids=ids) for n, seed in enumerate(replayed)]
    assert judged("G1-RNG", "test_omitted_seed", drawn=first, replays=again).verdict == verdict


TOP = [{"id": i, "logprob": math.log(p)} for i, p in enumerate((0.5, 0.3, 0.15))]


def token(choice: int, at_ms: float, **sent: Any) -> Exchange:
    request = {"job_id": f"at {at_ms}", "prompt": "p", "temperature": 1.0, "seed": at_ms, **sent}
    told = events(["a"], request, ids=[choice])
    told[1][1].update(logprob=TOP[choice]["logprob"], top=TOP)
    return stream(told, request, at_ms)


@pytest.mark.parametrize(("rule", "value"), [("top_k", 2), ("top_p", 0.7), ("min_p", 0.5)])
def test_truncation(rule: str, value: float) -> None:
    inside, outside = token(1, 1, **{rule: value}), token(2, 2, **{rule: value})
    test, free = f"test_{rule}", token(2, 3)
    assert judged("G1-SAMPLING", test, limited=[inside], free=[free]).verdict == "pass"
    assert judged("G1-SAMPLING", test, limited=[outside], free=[free]).verdict == "fail"
    assert judged("G1-SAMPLING", test, limited=[inside], free=[token(0, 4)]).verdict == "fail"


def test_greedy_takes_the_best() -> None:
    best, second = token(0, 1), token(1, 2)
    one, other = token(0, 3, top_k=1), token(1, 4, top_k=1)
    assert judged("G1-SAMPLING", "test_greedy", greedy=[best], top_k_1=[one]).verdict == "pass"
    assert judged("G1-SAMPLING", "test_greedy", greedy=[second], top_k_1=[other]).verdict == "fail"
    assert judged("G1-SAMPLING", "test_greedy", greedy=[best], top_k_1=[other]).verdict == "fail"


@pytest.mark.parametrize(
    ("sent", "answered", "verdict"),
    [
        ("mine", "mine", "pass"),
        ("mine", SAME, "fail"),
        ("not valid!", SAME, "pass"),
        ("not valid!", "not valid!", "fail"),
        ("not valid!", "made-up", "fail"),
    ],
)
def test_correlation(sent: str, answered: str, verdict: str) -> None:
    job = run(["a"], 1)
    header = "X-Correlation-Id"
    told = (*job.response_headers, (header, "job-1"))
    job = type(job)(
        **{**vars(job), "response_headers": told, "request_headers": ((header, "job-1"),)}
    )
    lines = [
        json.dumps({"event": event, "job_id": "job at 1", "correlation_id": "job-1"})
        for event in ("execute_start", "execute_end")
    ]
    probe = exchange(headers=[(header, answered)], request_headers=[(header, sent)])
    found = judged("G1-HTTP-CORRELATION", "t", jobs=[job], probes=[probe], log_lines=lines)
    assert found.verdict == verdict, found.message
    lost = judged("G1-HTTP-CORRELATION", "t", jobs=[job], probes=[probe], log_lines=lines[:1])
    assert lost.verdict == "fail"


def draws(choices: list[int], **sent: Any) -> list[Exchange]:
    asked = {"top_k": 3, "logprobs": 3, **sent}
    return [token(choice, seed, **asked) for seed, choice in enumerate(choices)]


FAIR = [0] * 106 + [1] * 63 + [2] * 31


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        (draws(FAIR), "200 draws fit"),
        (draws([0] * 200), "do not fit the distribution"),
        (draws(FAIR, temperature=0.3), "do not fit the distribution"),
        (draws(FAIR[:149]), "wanted 150 seeds"),
        ([*draws(FAIR), token(0, 5, top_k=3, logprobs=3)], "wanted 150 seeds"),
        (draws(FAIR, top_k=2), "3 alternatives, wanted top_k = 2"),
    ],
)
def test_the_distribution_of_first_tokens(runs: list[Exchange], says: str) -> None:
    found = judged("G1-SAMPLING", "test_distribution", {"p_value": 1e-6}, runs=runs)
    assert says in found.message
    assert found.verdict == ("pass" if says == "200 draws fit" else "fail")
