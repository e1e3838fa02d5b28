"""The re-scoring challenge: an adversary who reads its requests cannot tell which will be judged.

Each statement is tried by an adversary's classifier over many runs: the best threshold over a
request's fields must not tell those asked again late from the others, nor a repeat's place or gap.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from scipy import stats

from harness.challenge import Challenge
from harness.rescoring import BETWEEN_S, EARLY, EARLY_AMONG, KINDS, Rescoring, mixed

RUNS = [Rescoring.drawn(f"nonce {number}") for number in range(400)]
Request = Mapping[str, Any]

FIELDS: Mapping[str, Callable[[Request], float]] = {
    "characters": lambda request: len(json.dumps(request.get("prompt", request.get("messages")))),
    "max_tokens": lambda request: request["max_tokens"],
    "temperature": lambda request: request["temperature"],
    "top_p": lambda request: request.get("top_p", 2.0),
    "logprobs": lambda request: request.get("logprobs", 0),
    "seed": lambda request: request["seed"] / 2**63,
    "is chat": lambda request: "messages" in request,
    "number of fields": len,
    "commas": lambda request: json.dumps(request).count(","),
}


def tells_apart(ours: Sequence[float], others: Sequence[float]) -> bool:
    """Whether a rank test over both samples sees any difference (p below 1e-3)."""
    return bool(stats.mannwhitneyu(ours, others).pvalue < 1e-3)


def asked(run: Rescoring, place: int | Request) -> Request:
    return place if isinstance(place, Mapping) else run.requests[place]


def test_a_nonce_draws_the_same_run() -> None:
    assert Rescoring.drawn("n") == Rescoring.drawn("n")
    assert Rescoring.drawn("n").requests != Rescoring.drawn("m").requests


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_tells_what_will_be_asked_again(field: str) -> None:
    value = FIELDS[field]
    again = [value(run.requests[i]) for run in RUNS for i in run.early]
    rest = [value(r) for run in RUNS for i, r in enumerate(run.requests) if i not in run.early]
    assert not tells_apart(again, rest)


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_tells_the_tail_from_the_rest(field: str) -> None:
    value = FIELDS[field]
    tail = [value(asked(run, one)) for run in RUNS for one in run.tail]
    assert not tells_apart(tail, [value(r) for run in RUNS for r in run.requests])


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_tells_a_run_from_ordinary_clients(field: str) -> None:
    value = FIELDS[field]
    draw = Challenge("clients", "ordinary").draw()
    clients = [value(mixed(draw, draw.choice(KINDS))) for _ in range(6000)]
    assert not tells_apart([value(r) for run in RUNS for r in run.requests], clients)


def test_no_place_tells_a_repeat_in_the_tail() -> None:
    places = [
        [i for run in RUNS for i, one in enumerate(run.tail) if isinstance(one, int) is repeat]
        for repeat in (True, False)
    ]
    assert not tells_apart(*places)
    early = [i for run in RUNS for i in run.early]
    assert {early.count(i) for i in range(EARLY_AMONG)} <= set(range(220, 320))


def test_no_gap_tells_a_repeat_or_the_tail() -> None:
    gaps: dict[str, list[float]] = {"repeat": [], "fresh": [], "job": []}
    for run in RUNS:
        n = len(run.requests)
        for i in range(1, len(run.due_s)):
            kind = "job" if i < n else "repeat" if isinstance(run.tail[i - n], int) else "fresh"
            gaps[kind].append(run.due_s[i] - run.due_s[i - 1])
    assert not tells_apart(gaps["repeat"], gaps["fresh"])
    assert not tells_apart(gaps["repeat"] + gaps["fresh"], gaps["job"])


def test_the_adversary_would_see_a_probe_that_differs() -> None:
    value = FIELDS["temperature"]
    odd = [value({**run.requests[i], "temperature": 0.15}) for run in RUNS for i in run.early]
    assert tells_apart(odd, [value(r) for run in RUNS for r in run.requests])
    first = [run.due_s[0] for run in RUNS]
    assert tells_apart(first, [0.0] * len(first))


def test_all_are_asked_again_late_enough() -> None:
    for run in RUNS:
        assert {one for one in run.tail if isinstance(one, int)} == set(run.early)
        assert len(run.tail) == 2 * EARLY
        due = run.due_s
        assert due == sorted(due)
        assert due[len(run.requests)] - due[EARLY_AMONG - 1] == pytest.approx(BETWEEN_S)
