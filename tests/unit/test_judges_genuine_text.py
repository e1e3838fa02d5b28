"""Judges of the exact black-box probes: an honest observation passes, each rule can fail."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import events, exchange, in_one_piece, run, stream

Many = Sequence[Exchange]


def judged(check: str, limits: dict[str, float] | None = None, **named: Any) -> Finding:
    seen = {k: tuple(v) for k, v in named.items() if isinstance(v, list) and v and _is(v[0])}
    facts = {k: v for k, v in named.items() if k not in seen}
    return JUDGES[f"G4-GENUINE-{check}"](
        Observation(f"G4-GENUINE-{check}", "test", 1, seen, facts), limits or {}
    )


def _is(value: Any) -> bool:
    return isinstance(value, Exchange)


def fails(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.FAIL, True), found


def errs(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.ERROR, True), found


# count


def spelled(ids: Sequence[int], text: str, dropped: int = 0) -> Exchange:
    told = {"text": text, "dropped_bytes": dropped}
    return exchange("/detokenize", told, sent={"ids": list(ids)})


def counted(job: Exchange, text: str, **silent: Any) -> Finding:
    ids = [t["id"] for t in _tokens(job)]
    return judged("COUNT", jobs=[job], texts=[spelled(ids, text)], **silent)


def _tokens(job: Exchange) -> list[dict[str, Any]]:
    lines = [line for line in job.body.decode().splitlines() if line.startswith("data: ")]
    return [table for line in lines if "t" in (table := json.loads(line[6:]))]


def test_counts_that_agree_pass() -> None:
    partial = [spelled([101], "", dropped=2)]
    assert counted(run(["a", "", "é"]), "aé", silent=partial).verdict == Verdict.PASS
    assert counted(run(["a", "b"]), "ab").verdict == Verdict.PASS


def test_only_the_last_token_of_a_natural_end_may_be_silent() -> None:
    end = [spelled([101], "")]
    assert counted(run(["a", ""], reason="stop"), "a", silent=end).verdict == Verdict.PASS
    fails(counted(run(["a", ""], reason="length"), "a", silent=end), "no bytes of its own")
    two = run(["a", "", ""], ids=[100, 101, 101], reason="stop")
    fails(counted(two, "a", silent=end), "no bytes of its own")
    fails(counted(run(["", "a"], ids=[101, 1]), "a", silent=end), "no bytes of its own")
    errs(counted(run(["a", ""], reason="stop"), "a"), "was not detokenized")


def test_tokens_that_spell_another_text_fail() -> None:
    fails(counted(run(["a", "b"]), "aab"), "spell another text")
    wrong = judged("COUNT", jobs=[run(["a"])], texts=[spelled([7], "a")])
    errs(wrong, "other ids were detokenized")


def test_usage_that_differs_from_the_events_fails() -> None:
    sent = {"job_id": "j", "prompt": "p"}
    told = events(["a", "b"], sent)
    told[-1][1]["tokens_out"] = 3
    fails(counted(stream(told, sent), "ab"), "end says 3 tokens_out, 2 token events came")


# stream and whole


def whole(text: str, tokens: int) -> Exchange:
    return in_one_piece(text, tokens)


@pytest.mark.parametrize(
    ("text", "tokens", "says"),
    [("ab", 2, ""), ("ac", 2, "stream and whole answer differ"), ("ab", 3, "reported as usage")],
)
def test_stream_and_whole_answer(text: str, tokens: int, says: str) -> None:
    found = judged("STREAM", streams=[run(["a", "b"])], whole=[whole(text, tokens)])
    if says:
        fails(found, says)
    else:
        assert found.verdict == Verdict.PASS


# seed


def seeds(answers: Sequence[tuple[int, int]], **more: Any) -> Finding:
    jobs = [
        run(["a"], at_ms=i, seed=seed, ids=[token], **more)
        for i, (seed, token) in enumerate(answers)
    ]
    return judged("SEED", jobs=jobs)


def test_seeds() -> None:
    honest = [(1, 10), (2, 20), (3, 30), (4, 40), (1, 10)]
    assert seeds(honest).verdict == Verdict.PASS
    fails(seeds([*honest[:4], (1, 11)]), "the seed is ignored")
    fails(seeds([(seed, 5) for seed, _ in honest]), "4 seeds gave 1 answers")
    fails(seeds(honest, started={"seed": 9}), "seed 1 asked, 9 used")
    errs(seeds(honest[:4]), "one of them twice")
    errs(seeds([(1, 10), (1, 10)]), "at least 4 seeds")


# temperature

PROMPTS = 14


def heated(cool_at: int, hot_at: int, zero_at: int, length: int = 8) -> Finding:
    """Answers that leave the greedy one at these tokens."""

    def answers(at: int, offset: int) -> list[Exchange]:
        ids = [list(range(at)) + [99] * (length - at) for _ in range(PROMPTS)]
        return [run(["x"] * length, at_ms=offset + i, ids=one) for i, one in enumerate(ids)]

    limits = {"p_value": 0.001}
    return judged(
        "TEMPERATURE",
        limits,
        greedy=answers(length, 0),
        cool=answers(cool_at, 100),
        hot=answers(hot_at, 200),
        near_zero=answers(zero_at, 300),
    )


def test_temperature() -> None:
    assert heated(6, 1, 8).verdict == Verdict.PASS
    fails(heated(8, 8, 8), "makes no difference")
    fails(heated(1, 6, 8), "makes no difference")
    fails(heated(6, 1, 3), "near temperature zero only 0 of 14")
    errs(judged("TEMPERATURE", {"p_value": 1}, greedy=[run(["a"])], cool=[run(["a"])] * 2), "cool")


# length


def ended(job: Exchange, *continued: Exchange) -> Finding:
    named = {"continued": list(continued)} if continued else {}
    return judged("LENGTH", jobs=[job], **named)


def test_length_exact_passes_and_other_lengths_fail() -> None:
    assert ended(run(["a", "b"], max_tokens=2)).verdict == Verdict.PASS
    fails(ended(run(["a", "b", "c"], max_tokens=2)), "3 tokens for max_tokens 2")
    fails(ended(run(["a"], max_tokens=2)), "finish_reason length after 1 of 2")


def test_a_natural_end_is_asked_again() -> None:
    job = run(["a", ""], ids=[5, 2], reason="stop")

    def again(ids: list[int], prompt: list[int], reason: str = "stop") -> Exchange:
        return run([""] * len(ids), at_ms=9, ids=ids, reason=reason, prompt_ids=prompt)

    assert ended(job, again([2], [1, 5])).verdict == Verdict.PASS
    fails(ended(job, again([7, 2], [1, 5])), "it was cut")
    fails(ended(job, again([3], [1, 5])), "it was cut")
    fails(ended(job, again([2], [1, 5], reason="length")), "wanted finish_reason 'stop'")
    errs(ended(job, again([2], [1, 6])), "did not start from the ended answer")
    errs(ended(job), "1 answers ended early, 0 were continued")
    fails(ended(run([], reason="stop"), again([2], [1])), "without the token that ends it")


# stop


def stopped(text: str, reason: str = "stop_sequence", sequence: str = "ver") -> Finding:
    cut = run(list(text), at_ms=9, reason=reason, stop=[sequence])
    return judged("STOP", free=[run(["over", " the", " river"])], stopped=[cut])


def test_stop_sequences() -> None:
    assert stopped("o").verdict == Verdict.PASS
    fails(stopped("over the ri"), "up to its stop sequence")
    fails(stopped("o", reason="length"), "wanted finish_reason 'stop_sequence'")
    errs(stopped("o", sequence="zzz"), "is not in the free answer")


# context


def read_from_start(one: float, other: float, used: int = 3, given: int = 3) -> Finding:
    limits = {"min_prompt_tokens": 3}
    sent = {"job_id": "j", "prompt": "p"}

    def scored(logprob: float) -> Exchange:
        told = events(["a"], sent, started={"prompt_tokens": used})
        told[1][1]["logprob"] = logprob
        return stream(told, sent)

    prompts = [exchange("/tokenize", {"ids": [*range(given)]}, sent={"text": "p"})]
    return judged("CONTEXT", limits, one=[scored(one)], other=[scored(other)], prompts=prompts)


def test_context() -> None:
    assert read_from_start(-1.0, -1.5).verdict == Verdict.PASS
    fails(read_from_start(-1.0, -1.0), "the context was cut")
    fails(read_from_start(-1.0, -1.5, used=2), "2 tokens used, 3 given")
    fails(read_from_start(-1.0, -1.5, used=2, given=2), "the longest prompt has 2 tokens")


# canary


def crossed(last: Exchange, between: Many) -> Finding:
    first = run(["a"], ids=[5])
    return judged("CANARY", answers=[_scored(first), last], between=list(between), canary="qx7")


def _scored(seen: Exchange, logprob: float = -1.0) -> Exchange:
    sent = {"job_id": "j", "prompt": "p"}
    told = events([t["t"] for t in _tokens(seen)], sent, ids=[t["id"] for t in _tokens(seen)])
    for name, table in told:
        if name == "token":
            table["logprob"] = logprob
    return stream(told, sent)


def test_canary() -> None:
    planted = [run(["z"], at_ms=i, prompt="remember qx7") for i in range(2)]
    assert crossed(_scored(run(["a"], ids=[5])), planted).verdict == Verdict.PASS
    fails(crossed(_scored(run(["a"], ids=[6])), planted), "changed after another request")
    fails(crossed(_scored(run(["a"], ids=[5]), -1.1), planted), "changed after another request")
    fails(crossed(_scored(run(["qx7"], ids=[5])), planted), "contains the canary")
    errs(crossed(_scored(run(["a"], ids=[5])), planted[:1]), "not planted")


# logprob


def drawn(truth: Sequence[float], told: Sequence[float], n: int = 250, seed: int = 1) -> Finding:
    """Tokens drawn by `truth`, reported with `told`."""
    draw = random.Random(seed)
    sent = {"job_id": "j", "prompt": "p"}
    rows = events(["x"] * n, sent, ids=draw.choices(range(len(truth)), truth, k=n))
    for name, table in rows:
        if name == "token":
            table["top"] = [{"id": i, "logprob": log(p)} for i, p in enumerate(told)]
            table["logprob"] = log(told[table["id"]])
    return judged("LOGPROB", {"p_value": 1e-6}, jobs=[stream(rows, sent)])


@pytest.mark.parametrize("seed", range(200))
def test_an_honest_distribution_passes(seed: int) -> None:
    assert drawn([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], seed=seed).verdict == Verdict.PASS


def test_a_forged_distribution_fails() -> None:
    found = [drawn([0.5, 0.3, 0.2], [0.97, 0.02, 0.01], seed=seed) for seed in range(200)]
    assert sum("were due" in one.message for one in found) >= 199


@pytest.mark.parametrize(
    ("top", "token", "says"),
    [
        ([], {}, "without its alternatives"),
        ([(0, 0.2), (1, 0.5)], {}, "not in order"),
        ([(0, 0.8), (1, 0.7)], {}, "sum to 1.5000"),
        ([(0, 0.5), (1, 0.3)], {"logprob": log(0.4)}, "differs from its own entry"),
        ([(0, 0.5), (1, 0.3)], {"id": 7, "logprob": log(0.45)}, "a better token is left out"),
    ],
)
def test_an_impossible_distribution_fails(
    top: list[tuple[int, float]], token: dict[str, Any], says: str
) -> None:
    sent = {"job_id": "j", "prompt": "p"}
    rows = events(["x"], sent, ids=[0])
    rows[1][1].update(top=[{"id": i, "logprob": log(p)} for i, p in top])
    rows[1][1].update(logprob=log(dict(top).get(0, exp(-1.0))))
    rows[1][1].update(token)
    fails(judged("LOGPROB", {"p_value": 1e-6}, jobs=[stream(rows, sent)]), says)


# metrics


def metered(tokens: float, requests: float, kind: str = "text/plain; version=0.0.4") -> Finding:
    def page(n: float, jobs: float) -> Exchange:
        text = (
            f"# TYPE worker_tokens_generated_total counter\n"
            f"worker_tokens_generated_total {n}\n"
            f'worker_requests_total{{outcome="ok"}} {jobs}\n'
        )
        return exchange("/metrics", text.encode(), headers=(("Content-Type", kind),))

    return judged(
        "METRICS",
        jobs=[run(["a", "b"])],
        before=[page(10, 4)],
        after=[page(10 + tokens, 4 + requests)],
    )


def test_metrics() -> None:
    assert metered(2, 1).verdict == Verdict.PASS
    fails(metered(6, 1), "worker_tokens_generated_total rose by 6, 2 were seen")
    fails(metered(2, 2), "worker_requests_total rose by 2, 1 were seen")
    fails(metered(2, 1, kind="text/html"), "metrics are no text")
    job = replace(run(["a"]), status=503)
    assert judged("METRICS", jobs=[job]).verdict == Verdict.FAIL
