"""Judges of determinism: what they pass, and that each rule can fail."""

from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Observation, Verdict
from tests.unit.recorded import events, exchange, stream

ERROR = Verdict.ERROR
LIMITS = {"min_repeats": 3, "logit_bound_ratio": 0.01}


def judged(name: str, test: str = "t", **named: Any) -> Any:
    seen = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items()}
    facts = {k: v for k, v in named.items() if not isinstance(seen[k][0], Exchange)}
    recorded = {k: v for k, v in seen.items() if k not in facts}
    observation = Observation(f"G4-DETERMINISM-{name}", test, 1, recorded, facts)
    return JUDGES[f"G4-DETERMINISM-{name}"](observation, LIMITS)


def fails(found: Any, says: str, verdict: Verdict = Verdict.FAIL) -> None:
    assert (found.verdict, says in found.message) == (verdict, True), found


def scored(
    at_ms: float,
    ids: tuple[int, ...] = (1, 2),
    logprob: float | None = -1.5,
    cached: int = 0,
    **sent: Any,
) -> Exchange:
    request = {"job_id": f"at {at_ms}", "prompt": "p", "temperature": 0.9, "seed": 1, **sent}
    texts = ["t"] * len(ids)
    told = events(texts, request, ids=list(ids), started={"cached_tokens": cached})
    top = [{"id": ids[0], "logprob": -0.5}, {"id": 99, "logprob": -4.5}] if ids else []
    extra = {} if logprob is None else {"logprob": logprob, "top": top}
    told = [(name, {**t, **extra} if name == "token" else t) for name, t in told]
    return stream(told, request, at_ms)


def three(**last: Any) -> tuple[Exchange, ...]:
    return (scored(0), scored(10), scored(20, **last))


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ({"ids": (1, 3)}, "run 3 differs from run 1 at token 1"),
        ({"ids": (1,)}, "at token count"),
        ({"logprob": -1.5000000000000002}, "at token 0"),
        ({"cached": 2}, "2 tokens were cached"),
        ({"job_id": "at 0"}, "job_id stands twice"),
        ({"ids": ()}, "without tokens"),
    ],
)
def test_repeats(last: dict[str, Any], says: str) -> None:
    assert judged("REPEAT", runs=three()).verdict == Verdict.PASS
    fails(judged("REPEAT", runs=three(**last)), says)


def test_repeats_that_show_nothing() -> None:
    fails(judged("REPEAT", runs=three()[:2]), "2 repeats, wanted 3")
    fails(judged("REPEAT", runs=three(prompt="q")), "requests themselves differ", ERROR)
    fails(judged("REPEAT", runs=three(logprob=None)), "no logprobs", ERROR)
    greedy = tuple(scored(at, temperature=0) for at in (0, 10, 20))
    fails(judged("REPEAT", runs=greedy), "greedy", ERROR)


def restart(**changed: Any) -> Any:
    named = {"before": scored(0), "after": scored(10), "processes": [[1, 1.0], [2, 2.0]]}
    return judged("RESTART", **(named | changed))


def test_a_restart() -> None:
    assert restart().verdict == Verdict.PASS
    fails(restart(after=scored(10, ids=(4, 2))), "at token 0")
    fails(restart(processes=[[1, 1.0], [1, 1.0]]), "two processes", ERROR)
    fails(restart(processes=[[1, 1.0], [None, None]]), "two processes", ERROR)


def order(test: str, runs: tuple[Exchange, ...], **changed: Any) -> Any:
    others = tuple(scored(at, prompt="other") for at in (5, 15, 25))
    return judged("ORDER", test, **({"runs": runs, "others": others} | changed))


def test_after_other_requests() -> None:
    runs = (*three(), scored(30))
    name = "test_others_change_nothing"
    assert order(name, runs).verdict == Verdict.PASS
    fails(order(name, (*three(), scored(30, ids=(1, 9)))), "after another request")
    fails(order(name, runs[:3]), "wanted at least 4")
    fails(order(name, runs, others=scored(5, prompt="o")), "no other request ran", ERROR)
    fails(order(name, runs, others=scored(5)), "is the same request", ERROR)


def test_queue_positions() -> None:
    others = tuple(scored(at, prompt="other") for at in (7.5, 17.5, 18.5))
    runs, name = (scored(0), scored(10), scored(20)), "test_queue_positions_change_nothing"
    found = order(name, runs, others=others)
    assert found.numbers["positions"] == [0, 1, 2], found
    fails(order(name, (scored(0), scored(10), scored(20, logprob=-1)), others=others), "queue")
    fails(order(name, runs), "stood at the positions", ERROR)


def cached(**changed: Any) -> Any:
    def asked(at: float, **more: Any) -> Exchange:
        return scored(at, cache_prompt=True, **more)

    named = {
        "plain": scored(0),
        "cached": (asked(1), asked(2, cached=2)),
        "plain_again": scored(3),
    }
    return judged("CACHE", **(named | changed))


def test_cache_prompt() -> None:
    assert cached().numbers["reused"] == 2
    first = scored(1, cache_prompt=True)
    whole = scored(2, cached=3, cache_prompt=True)
    fails(cached(cached=(first, whole)), "a whole prompt was reused")
    other = scored(2, cache_prompt=True, ids=(1, 7))
    fails(cached(cached=(first, other)), "with cache_prompt: run 3")
    fails(cached(plain_again=scored(3, ids=(5, 2))), "run 4")
    fails(cached(plain=scored(0, cached=1)), "nobody allowed it")
    fails(cached(cached=(scored(1), first)), "was not asked for", ERROR)
    fails(cached(cached=first), "twice with cache_prompt", ERROR)


def agreement(gap: float = 0.0, ids: tuple[int, ...] = (1, 2)) -> Any:
    row = {"rank": 0, "argmax_id": 1, "margin": 0.0, "logprob": -1.5 + gap}
    answer = {"scores": [{"token_id": i, **row} for i in (1, 2)]}
    asked = {"prompt_ids": [7], "completion_ids": list(ids)}
    return judged(
        "PREFILL-DECODE",
        streams=scored(0),
        prompts=exchange("/tokenize", {"ids": [7]}),
        scores=exchange("/score", answer, sent=asked),
    )


def test_prefill_and_decode() -> None:
    assert agreement(0.03).numbers["positions"] == 2
    fails(agreement(0.05), "wanted within 0.0400")
    fails(agreement(float("1e9")), "from prefill")
    fails(agreement(ids=(1, 3)), "other tokens were scored", ERROR)


def seeds(*ids: int, **changed: Any) -> Any:
    runs = [scored(n, ids=(i,), temperature=1.0, seed=n, **changed) for n, i in enumerate(ids)]
    return judged("CONTROL", runs=tuple(runs))


def test_the_negative_control() -> None:
    assert seeds(1, 2, 3, 4).verdict == Verdict.PASS
    fails(seeds(1, 2, 3, 3), "only 3 completions")
    fails(seeds(1, 2, 3), "wanted 4 or more")
    cold = tuple(scored(n, ids=(n + 1,), seed=n) for n in range(4))
    fails(judged("CONTROL", runs=cold), "temperature 1", ERROR)
