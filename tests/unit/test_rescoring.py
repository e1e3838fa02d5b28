"""The re-scoring challenge: an adversary who reads its requests cannot tell which will be judged.

Each statement is tried by an adversary's classifier over many runs: the best threshold over a
request's fields must not tell those asked again late from the others, nor a repeat's place or gap.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pytest
from scipy import stats

from harness.rescoring import (
    BETWEEN_S,
    EARLY,
    EARLY_AMONG,
    MOST_TOGETHER,
    UNSEEDED,
    Planned,
    Rescoring,
)
from harness.traffic import reproducible

RUNS = [Rescoring.drawn(f"nonce {number}") for number in range(400)]
Request = Mapping[str, Any]

FIELDS: Mapping[str, Callable[[Request], float]] = {
    "characters": lambda request: len(json.dumps(request.get("prompt", request.get("messages")))),
    "max_tokens": lambda request: request["max_tokens"],
    "temperature": lambda request: request["temperature"],
    "top_p": lambda request: request.get("top_p", 2.0),
    "logprobs": lambda request: request.get("logprobs", 0),
    "seed": lambda request: request.get("seed", -(2**63)) / 2**63,
    "stop": lambda request: len("".join(request.get("stop", ()))),
    "is chat": lambda request: "messages" in request,
    "number of fields": len,
    "commas": lambda request: json.dumps(request).count(","),
}


def tells_apart(ours: Sequence[float], others: Sequence[float]) -> bool:
    """Whether a rank test over both samples sees any difference (p below 1e-3)."""
    return bool(stats.mannwhitneyu(ours, others).pvalue < 1e-3)


def advantage(ours: Sequence[float], others: Sequence[float]) -> float:
    """How far the best threshold tells the two apart: 0 by nothing, 1 always."""
    return float(stats.ks_2samp(ours, others).statistic)


def asked(run: Rescoring, place: int | Planned) -> Request:
    return place.request if isinstance(place, Planned) else run.requests[place]


def test_a_nonce_draws_the_same_run() -> None:
    assert Rescoring.drawn("n") == Rescoring.drawn("n")
    assert Rescoring.drawn("n").requests != Rescoring.drawn("m").requests


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_tells_what_will_be_asked_again(field: str) -> None:
    value = FIELDS[field]
    first = [(run, i) for run in RUNS for i in range(EARLY_AMONG)]
    again = [value(run.requests[i]) for run, i in first if i in run.early]
    assert not tells_apart(
        again, [value(run.requests[i]) for run, i in first if i not in run.early]
    )


@pytest.mark.parametrize("field", FIELDS)
def test_hardly_any_field_tells_the_tail_from_the_rest(field: str) -> None:
    value = FIELDS[field]
    tail = [value(asked(run, one)) for run in RUNS for one in run.tail]
    rest = [value(request) for run in RUNS for request in run.requests]
    assert advantage(tail, rest) < 0.12


@pytest.mark.parametrize("field", FIELDS)
def test_hardly_any_field_tells_a_repeat_in_the_tail(field: str) -> None:
    value = FIELDS[field]
    sides = [
        [value(asked(run, one)) for run in RUNS for one in run.tail if isinstance(one, int) is kind]
        for kind in (True, False)
    ]
    assert advantage(*sides) < 0.12


def test_no_place_tells_a_repeat_in_the_tail() -> None:
    places = [
        [i for run in RUNS for i, one in enumerate(run.tail) if isinstance(one, int) is repeat]
        for repeat in (True, False)
    ]
    assert not tells_apart(*places)
    early = [i for run in RUNS for i in run.early]
    assert {early.count(i) for i in range(EARLY_AMONG)} <= set(range(260, 340))


def test_no_gap_tells_a_repeat_or_the_tail() -> None:
    gaps: dict[str, list[float]] = {"repeat": [], "fresh": [], "job": []}
    for run in RUNS:
        n = len(run.requests)
        for i in range(1, len(run.due_s)):
            kind = "job" if i < n else "repeat" if isinstance(run.tail[i - n], int) else "fresh"
            gap = run.due_s[i] - run.due_s[i - 1]
            gaps[kind] += [gap] if gap > 0 else []
    assert not tells_apart(gaps["repeat"], gaps["fresh"])
    assert not tells_apart(gaps["repeat"] + gaps["fresh"], gaps["job"])


def test_the_adversary_would_see_a_probe_that_differs() -> None:
    value = FIELDS["temperature"]
    odd = [value({**run.requests[i], "temperature": 0.15}) for run in RUNS for i in run.early]
    rest = [value(r) for run in RUNS for r in run.requests]
    assert tells_apart(odd, rest)
    assert advantage(odd, rest) > 0.5
    first = [run.due_s[0] for run in RUNS]
    assert tells_apart(first, [0.0] * len(first))


def test_all_are_asked_again_late_enough() -> None:
    for run in RUNS:
        assert {one for one in run.tail if isinstance(one, int)} == set(run.early)
        assert len(run.tail) == 2 * EARLY
        due = run.due_s
        assert due == sorted(due)
        assert due[len(run.requests)] - due[EARLY_AMONG - 1] == pytest.approx(BETWEEN_S)


def test_most_early_answers_must_be_the_same_again() -> None:
    for run in RUNS:
        assert sum(not reproducible(request) for request in run.requests) <= UNSEEDED
        assert sum(reproducible(run.requests[i]) for i in run.early) >= EARLY - UNSEEDED


def test_some_requests_are_sent_at_once_but_never_many() -> None:
    sizes = [[len(list(group)) for _, group in groupby(run.due_s)] for run in RUNS]
    assert {max(size) for size in sizes} <= set(range(1, MOST_TOGETHER + 1))
    assert sum(max(size) > 1 for size in sizes) > 0.95 * len(RUNS)


def test_every_run_has_every_family() -> None:
    for run in RUNS:
        assert {"greedy", "sampled", "logprobs", "chat", "long", "ids", "whole"} <= set(run.kinds)
        prompts = [request.get("prompt") for request in run.requests]
        assert len(set(prompts)) < len(prompts) - 4


def test_without_pauses_the_same_are_sent_at_once() -> None:
    for run in RUNS:
        assert run.n_first in range(EARLY_AMONG, EARLY_AMONG + MOST_TOGETHER)
        for between_s in (-9.0, 0.0, 7.5, BETWEEN_S):
            due = run.due_within(between_s)
            assert [list(g) for _, g in groupby(range(len(due)), due.__getitem__)] == [
                list(g) for _, g in groupby(range(len(due)), run.due_s.__getitem__)
            ]
            between = due[len(run.requests)] - due[run.n_first - 1]
            assert between == pytest.approx(max(0.0, between_s), abs=2e-3)
