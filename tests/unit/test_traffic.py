"""No black-box probe sends a request that re-scored traffic does not send too.

An adversary's view: from the bytes of every request, what tells probes apart. Each value that a
probe's requests have must also be one of re-scored traffic's, drawn for other nonces.
"""

import inspect
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.haiku import haiku_challenge, haiku_request
from harness.profiles import PROFILES
from harness.rescoring import Asker, Planned, Rescoring
from harness.traffic import KINDS, LONGEST, fresh
from suites import test_genuine
from tests.unit.traffic_recorder import Engine, Sent

OTHERS = ("G4-GENUINE-RESCORE", "G4-GENUINE-LATE", "G4-GENUINE-PROCESS")
NONCES = [f"nonce {number}" for number in range(4)]
TRAFFIC_NONCES = [f"ordinary {number}" for number in range(150)]
CODE = re.compile(r"\b(?=\w*\d)[a-z0-9]{8}\b|\b[a-z]{8}(?=\.)")


def probes() -> dict[str, Callable[..., None]]:
    """The tests that ask an engine for completions to judge it by these alone."""
    tests = [one for name, one in vars(test_genuine).items() if name.startswith("test_")]
    checks = {mark.args[0]: one for one in tests for mark in one.pytestmark if mark.name == "check"}
    return {id_: test for id_, test in checks.items() if id_ not in OTHERS}


@cache
def probed(check: str) -> list[list[Sent]]:
    """What this probe sends, run by run."""
    return [list(_sent(probes()[check], nonce)) for nonce in NONCES]


def _sent(test: Callable[..., None], nonce: str) -> Iterator[Sent]:
    engine = Engine()
    offered: dict[str, Any] = {
        "engine": engine,
        "launch_engine": lambda: engine,
        "nonce": nonce,
        "observe": lambda **_: None,
        "profile": PROFILES["cpu"],
        "vocabulary": None,
    }
    test(**{name: offered[name] for name in inspect.signature(test).parameters})
    return iter(engine.wire.sent)


@cache
def rescored() -> list[list[Sent]]:
    """What re-scoring sends, run by run; requests that are due at one moment are open at once."""
    return [_traffic(nonce) for nonce in TRAFFIC_NONCES]


def _traffic(nonce: str) -> list[Sent]:
    asked, engine = Rescoring.drawn(nonce), Engine()
    asker = Asker(engine.client)
    fields = zip(asked.kinds, asked.requests, strict=True)
    tail = (one for one in asked.tail if isinstance(one, Planned))
    for kind, request in [*fields, *((one.kind, one.request) for one in tail)]:
        asker.ask(kind, request)
    n = len(asked.requests)
    groups = [len(list(group)) for _, group in groupby(asked.due_s[:n])]
    open_now = [i + 1 for size in groups for i in range(size)]
    sent = engine.wire.sent
    return [
        Sent(one.path, one.headers, one.body, at)
        for one, at in zip(sent, [*open_now, *[1] * (len(sent) - n)], strict=True)
    ]


def words_of(sent: Sent) -> list[str]:
    """The words of its text, but for code words, which are drawn letter by letter."""
    text = sent.body.get("prompt") or json.dumps(sent.body.get("messages", ""), ensure_ascii=False)
    return re.findall(r"[^\s\"]+", CODE.sub("code", str(text)))


def known_before(run: Sequence[Sent], place: int) -> str:
    """How a request is like earlier ones of its run."""
    prompt = run[place].body.get("prompt")
    before = [one for one in run[:place] if one.body.get("prompt") == prompt]
    if prompt is None or not before:
        return "its prompt is new"
    named = ("job_id", "model", "stream")
    plain = [{k: v for k, v in one.body.items() if k not in named} for one in (*before, run[place])]
    if plain[-1] in plain[:-1]:
        return "as before"
    differ = [
        sorted(k for k in one.keys() | plain[-1].keys() if one.get(k) != plain[-1].get(k))
        for one in plain[:-1]
    ]
    return f"differs in {' and '.join(min(differ, key=len))}"


def times_before(run: Sequence[Sent], place: int) -> int:
    """How often its prompt was sent before."""
    prompt = run[place].body.get("prompt")
    return sum(prompt is not None and one.body.get("prompt") == prompt for one in run[:place])


ONE_OF: Mapping[str, Callable[[Sequence[Sent], int], Any]] = {
    "route": lambda run, i: run[i].path,
    "headers": lambda run, i: run[i].headers,
    "fields in their order": lambda run, i: tuple(run[i].body),
    "temperature": lambda run, i: run[i].body["temperature"],
    "top_p": lambda run, i: run[i].body.get("top_p"),
    "logprobs": lambda run, i: run[i].body.get("logprobs"),
    "stop": lambda run, i: tuple(run[i].body.get("stop", ())),
    "temperature and logprobs": lambda run, i: (
        run[i].body["temperature"],
        run[i].body.get("logprobs"),
    ),
    "form of its job's id": lambda run, i: re.sub("[0-9a-f]", "x", run[i].body.get("job_id", "")),
    "like an earlier one": known_before,
}
WITHIN: Mapping[str, Callable[[Sequence[Sent], int], float]] = {
    "max_tokens": lambda run, i: run[i].body["max_tokens"],
    "prompt's characters": lambda run, i: len(str(run[i].body.get("prompt", ""))),
    "prompt's token ids": lambda run, i: len(run[i].body.get("prompt_ids", ())),
    "sent at once": lambda run, i: run[i].at_once,
    "times its prompt was sent before": times_before,
}


def values(runs: Sequence[Sequence[Sent]], feature: Callable[..., Any]) -> set[Any]:
    return {feature(run, i) for run in runs for i in range(len(run))}


@cache
def ordinary(feature: str) -> set[Any]:
    return values(rescored(), (ONE_OF | WITHIN)[feature])


@cache
def ordinary_words() -> set[str]:
    return {word for run in rescored() for one in run for word in words_of(one)}


@pytest.mark.parametrize("feature", ONE_OF)
@pytest.mark.parametrize("check", probes())
def test_no_value_is_a_probes_alone(check: str, feature: str) -> None:
    assert values(probed(check), ONE_OF[feature]) - ordinary(feature) == set()


@pytest.mark.parametrize("feature", WITHIN)
@pytest.mark.parametrize("check", probes())
def test_no_number_is_beyond_ordinary_ones(check: str, feature: str) -> None:
    ours, others = values(probed(check), WITHIN[feature]), ordinary(feature)
    assert min(others) <= min(ours)
    assert max(ours) <= max(others)


@pytest.mark.parametrize("check", probes())
def test_no_word_is_a_probes_alone(check: str) -> None:
    ours = {word for run in probed(check) for one in run for word in words_of(one)}
    assert ours - ordinary_words() == set()


@pytest.mark.parametrize("check", probes())
def test_seeds_are_drawn_alike(check: str) -> None:
    assert min(one.body.get("seed", 2**62) for run in probed(check) for one in run) > 2**40


@pytest.mark.parametrize(
    ("feature", "odd"),
    [
        ("temperature", {"temperature": 0.2}),
        ("logprobs", {"logprobs": 4}),
        ("stop", {"stop": ["lantern"]}),
        ("fields in their order", {"top_k": 5}),
        ("like an earlier one", {"max_tokens": 7, "seed": 5, "temperature": 0.9}),
    ],
)
def test_the_adversary_would_see_a_probe_that_differs(feature: str, odd: dict[str, Any]) -> None:
    first = rescored()[0][0]
    other = Sent(first.path, first.headers, {**first.body, **odd})
    assert ONE_OF[feature]([first, other], 1) not in ordinary(feature)


def test_the_haiku_differs_from_ordinary_traffic_in_its_words_alone() -> None:
    engine = Engine()
    asked = haiku_request(haiku_challenge("n", 1, 17), chat=False)
    for request in (asked, asked, {**asked, "temperature": 0.7}):
        engine.client.execute(**request)
    for feature, read in ONE_OF.items():
        assert values([engine.wire.sent], read) <= ordinary(feature), feature


@given(st.integers(), st.sampled_from(KINDS))
def test_fresh_requests_are_within_the_api(seed: int, kind: str) -> None:
    drawn = fresh(random.Random(seed), kind)
    assert 0 <= drawn["temperature"] <= 2
    assert 0 < drawn.get("top_p", 1.0) <= 1
    assert 0 <= drawn.get("seed", 0) < 2**64
    assert 0 < drawn["max_tokens"] <= LONGEST
