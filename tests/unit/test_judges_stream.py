"""Judges of streams, seeds and bounds: what they pass, and that each rule can fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.validation import CASES, filled
from harness.observation import Chunk, Exchange, Observation, Verdict
from tests.unit.recorded import Event, events, exchange, run, stream

SENT: dict[str, Any] = {"job_id": "j", "prompt": "p", "max_tokens": 4, "seed": 5}


def judged(check: str, test: str, limits: dict[str, float] | None = None, **named: Any) -> Any:
    seen = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items() if _exchange(v)}
    facts = {k: v for k, v in named.items() if not _exchange(v)}
    return JUDGES[check](Observation(check, test, 1, seen, facts), limits or {})


def _exchange(value: Any) -> bool:
    return isinstance(value, Exchange) or (
        isinstance(value, tuple) and bool(value) and isinstance(value[0], Exchange)
    )


def sse(told: list[Event]) -> Any:
    return judged("G1-HTTP-SSE", "test_streams_are_well_formed", streams=stream(told, SENT))


def test_a_good_stream_passes() -> None:
    assert sse(events(["a", "b"], SENT)).verdict == Verdict.PASS


Change = Callable[[list[Event]], list[Event]]


def _with(index: int, **fields: Any) -> Change:
    return lambda told: [
        (name, {**table, **fields}) if i == index else (name, table)
        for i, (name, table) in enumerate(told)
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: told[:-1], "no terminal event"),
        (lambda told: [*told, told[-1]], "2 end events"),
        (lambda told: [*told, ("error", {"code": "X", "message": "m", "retriable": False})],
         "2 terminal events"),
        (lambda told: told[1:], "wanted started first"),
        (lambda told: [told[1], told[0], *told[2:]], "out of order"),
        (lambda told: [told[0], told[3], *told[1:3], told[4]], "out of order"),
        (lambda told: [*told[:2], ("ping", {}), *told[2:]], "unknown event"),
        (lambda told: [told[0], told[2], told[1], *told[3:]], "has i = 1"),
        (lambda told: [told[0], told[1], *told[3:]], "says 2 tokens_out, 1 token events"),
        (lambda told: [t for t in told if t[0] != "metrics"], "no metrics event"),
        (_with(1, id="x"), "id is no count"),
        (_with(1, i=True), "i is no count"),
        (_with(2, t=None), "t is no string"),
        (_with(0, seed=6), "seed is 6"),
        (_with(0, job_id="other"), "job_id is 'other'"),
        (_with(4, finish_reason="tired"), "unknown finish_reason"),
        (_with(4, tokens_out=3), "end says 3 tokens_out"),
        (_with(1, logprob=-1.0), "nobody asked for"),
    ],
)  # fmt: skip
def test_each_rule_of_the_stream_can_fail(change: Change, says: str) -> None:
    found = sse(change(events(["a", "b"], SENT)))
    assert found.verdict == Verdict.FAIL
    assert says in found.message


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda seen: replace(seen, status=500), "wanted status 200"),
        (lambda seen: replace(seen, error="ReadError"), "broke off"),
        (lambda seen: replace(seen, response_headers=()), "Content-Type"),
        (lambda seen: replace(seen, chunks=(*seen.chunks[:-1], Chunk(9, b"data: {"))), "inside"),
        (lambda seen: replace(seen, chunks=(Chunk(9, b"data: \xff\n\n"),)), "not UTF-8"),
        (lambda seen: replace(seen, chunks=(Chunk(9, b"event: error\ndata: [}\n\n"),)), "JSON"),
        (lambda seen: replace(seen, chunks=()), "no terminal"),
    ],
)
def test_damaged_bytes_fail(damage: Callable[[Exchange], Exchange], says: str) -> None:
    seen = damage(stream(events(["a"], SENT), SENT))
    found = judged("G1-HTTP-SSE", "test_streams_are_well_formed", streams=seen)
    assert found.verdict == Verdict.FAIL
    assert says in found.message


def test_nothing_recorded_is_an_error() -> None:
    assert judged("G1-HTTP-SSE", "test_streams_are_well_formed").verdict == Verdict.ERROR
    assert judged("G1-RNG", "test_no_such").verdict == Verdict.ERROR


def e2e(*runs: Exchange) -> Any:
    other = run(["x"], at_ms=50, ids=[8], prompt="another")
    limits = {"min_repeats": 3}
    return judged("G1-E2E", "test_a_hundred_repeats", limits, runs=runs, other_prompt=other)


def test_repeats_must_be_many_equal_and_uncached() -> None:
    same = [run(["a", "b"], at_ms=i, ids=[1, 2]) for i in range(3)]
    assert e2e(*same).verdict == Verdict.PASS
    assert "2 repeats, wanted 3" in e2e(*same[:2]).message
    other = run(["a", "c"], at_ms=9, ids=[1, 3])
    assert "run 3 differs from run 1 at token 1" in e2e(*same[:2], other).message
    cached = run(["a", "b"], at_ms=9, ids=[1, 2], started={"cached_tokens": 3})
    assert "3 tokens were cached" in e2e(*same[:2], cached).message
    assert "requests themselves differ" in e2e(*same[:2], run(["a"], 9, prompt="q")).message
    assert "job_id stands twice" in e2e(same[0], same[0], same[1]).message
    canned = tuple(run(["x"], at_ms=i, ids=[8]) for i in range(3))
    assert "the prompt is ignored" in e2e(*canned).message


def rng(test: str, **named: Any) -> Any:
    return judged("G1-RNG", test, **named)


def test_seeds() -> None:
    warm = [run(["a"], at_ms=i, temperature=1.0) for i in range(3)]
    assert rng("test_same_seed", runs=tuple(warm)).verdict == Verdict.PASS
    cold = tuple(run(["a"], at_ms=i, temperature=0.0) for i in range(3))
    assert "greedy" in rng("test_same_seed", runs=cold).message
    other = tuple(run(["a"], at_ms=i, seed=i, ids=[i], temperature=1.0) for i in range(4))
    assert rng("test_other_seeds", runs=other).verdict == Verdict.PASS
    constant = tuple(run(["a"], at_ms=i, seed=i, temperature=1.0) for i in range(4))
    assert "only 1 completions" in rng("test_other_seeds", runs=constant).message


@pytest.mark.parametrize("name", CASES)
def test_every_bound_passes_and_fails(name: str) -> None:
    case = CASES[name]
    extra: dict[str, Any] = {}
    if case.needs == "vocab":
        extra["health"] = exchange(answer={"vocab_size": 99})
    if case.needs == "stop":
        ids = list(range(case.n))
        extra["tokenize"] = exchange("/tokenize", {"ids": ids}, sent={"text": "~"})
    sent = filled(case, 99, "~")
    if "job_id" not in case.change:
        sent["job_id"] = "j"
    refusal = {"code": "INVALID_REQUEST", "message": "m", "field": case.field or "x",
               "retriable": False}  # fmt: skip
    refused = exchange("/execute", refusal, sent=sent, status=400)
    accepted = stream(events(["a"], {"job_id": "j"}), sent)

    def verdict(seen: Exchange) -> Verdict:
        test = f"test_bound[{name}]"
        return judged("G1-HTTP-VALIDATION", test, case=name, execute=seen, **extra).verdict

    good, bad = (refused, accepted) if case.field else (accepted, refused)
    assert verdict(good) == Verdict.PASS
    assert verdict(bad) == Verdict.FAIL
    wrong = exchange("/execute", refusal | {"field": "elsewhere"}, sent=sent, status=400)
    assert verdict(wrong) == Verdict.FAIL
    forged = replace(good, request_body=b'{"job_id": "j", "prompt": "other"}')
    assert verdict(forged) == Verdict.ERROR


def test_there_are_at_least_forty_bounds() -> None:
    assert len(CASES) >= 40
