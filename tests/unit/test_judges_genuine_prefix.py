"""The judge of continued answers: what parts is a failure, but for a near-tie that is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.stream import asked
from harness.near_tie import follow_up
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import MS, SSE, Chunk, events, exchange, run, stream, usage

CHECK = "G4-GENUINE-PREFIX"
LIMITS = {"near_tie_nats": 0.25, "max_near_ties": 2}
PROMPT, WHOLE = [1, 2], [5, 6, 7, 8]
GREEDY = {"temperature": 0.0, "seed": 1}
BEST, SECOND = -0.7, -0.75
Shown = Sequence[tuple[Any, float]]


def judged(wholes: Sequence[Exchange], rests: Sequence[Exchange], **more: Any) -> Finding:
    ties, limits = more.pop("ties", ()), more.pop("limits", LIMITS)
    encoded = [exchange("/tokenize", {"ids": PROMPT}, sent={"text": "p"}) for _ in wholes]
    seen = {"wholes": wholes, "rests": rests, "prompts": more.pop("prompts", encoded)}
    if ties:
        seen["ties"] = ties
        more.setdefault("tied", list(range(1, len(ties) + 1)))
    tuples = {name: tuple(one) for name, one in seen.items()}
    return JUDGES[CHECK](Observation(CHECK, "test", 1, tuples, more), limits)


def fails(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.FAIL, True), found


def errs(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.ERROR, True), found


def native(ids: Sequence[int], at_ms: float, **sent: Any) -> Exchange:
    return run(["x"] * len(ids), at_ms, ids=list(ids), **GREEDY, **sent)


def whole() -> Exchange:
    return native(WHOLE, 0)


def rest(ids: Sequence[int], sent: Sequence[int] = (1, 2, 5)) -> Exchange:
    return native(ids, 9, prompt_ids=list(sent))


def told(token: Mapping[str, Any], ids: Sequence[int] = (1, 2, 5, 6), **sent: Any) -> Exchange:
    """A follow-up's answer with these fields in its token."""
    wanted = {"job_id": "t", **follow_up(asked(rest([6])), [6]), "prompt_ids": list(ids), **sent}
    rows = events(["x"], wanted, ids=[token.get("id", 7)])
    rows[1][1].update(token)
    return stream(rows, wanted, 20)


def top(*shown: tuple[Any, float]) -> dict[str, Any]:
    rows = [{"id": id_, "logprob": logprob} for id_, logprob in shown]
    return {"id": shown[0][0], "logprob": shown[0][1], "top": rows}


TIE = top((7, BEST), (9, SECOND))


def test_an_answer_that_continues_itself_passes() -> None:
    found = judged([whole()], [rest([6, 7, 8])], limits={})
    assert (found.verdict, found.numbers) == (Verdict.PASS, {})


@pytest.mark.parametrize(("ids", "says"), [([6, 9, 8], "1 later"), ([6, 7], "2 later")])
def test_an_answer_that_does_not_continue_itself_fails(ids: list[int], says: str) -> None:
    fails(judged([whole()], [rest(ids)]), f"continued from token 1, differs {says}: no near-tie")


@pytest.mark.parametrize("sent", [[1, 2, 6], [1, 2], [1, 2, *WHOLE], [3, 2, 5]])
def test_a_continuation_of_something_else_is_no_evidence(sent: list[int]) -> None:
    errs(judged([whole()], [rest([6, 7, 8], sent)]), "did not start from the answer's own tokens")


def test_an_encoding_that_is_none_fails() -> None:
    strange = exchange("/tokenize", {"ids": 7}, sent={"text": "p"})
    fails(judged([whole()], [rest([6, 7, 8])], prompts=[strange]), "ids is no list")


@pytest.mark.parametrize("token", [TIE, top((9, BEST), (7, SECOND)), top((7, BEST), (9, BEST))])
def test_a_near_tie_passes_and_is_told(token: Mapping[str, Any]) -> None:
    found = judged([whole()], [rest([6, 9, 3])], ties=[told(token)])
    assert found.verdict == Verdict.PASS, found
    assert "1 answers continue themselves, 1 of them up to a near-tie" in found.message
    assert found.numbers["near_ties"] == 1
    assert found.numbers["widest_near_tie_nats"] <= 0.05 + 1e-9


def test_two_near_ties_pass_and_three_fail() -> None:
    for ties, verdict in ((2, Verdict.PASS), (3, Verdict.FAIL)):
        rests = [rest([6, 9, 3])] * ties + [rest([6, 7, 8])] * (6 - ties)
        found = judged([whole()] * 6, rests, ties=[told(TIE)] * ties)
        assert found.verdict == verdict, found
    fails(found, "answer 3: continued from token 1, differs 1 later: near-ties, but more than 2")


def test_a_near_tie_excuses_its_own_answer_alone() -> None:
    parts = [rest([6, 7, 8]), rest([6, 9, 3])]
    assert judged([whole()] * 2, parts, ties=[told(TIE)], tied=[2]).verdict == Verdict.PASS
    fails(judged([whole()] * 2, parts, ties=[told(TIE)], tied=[1]), "nothing tells the two best")


@pytest.mark.parametrize("tied", [[], [1, 2], ["1"], [True], 1, "a"])
def test_follow_ups_that_belong_to_no_answer_are_no_evidence(tied: Any) -> None:
    errs(judged([whole()], [rest([6, 9])], ties=[told(TIE)], tied=tied), "where answers part")


def test_one_answer_has_one_follow_up() -> None:
    two = {"ties": [told(TIE)] * 2, "tied": [1, 1]}
    errs(judged([whole()], [rest([6, 9])], **two), "where answers part")


def test_an_answer_that_ends_early_is_no_near_tie() -> None:
    for ids in ([6, 7], [6, 7, 8, 9]):
        fails(judged([whole()], [rest(ids)], ties=[told(TIE)]), "one of the two ends there")


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (told(top((7, -0.6), (9, -0.9))), "0.3 nats apart, 0.25 at most are one"),
        (told(top((7, -1.2), (4, -1.25), (9, -1.3))), "the best tokens there are [7, 4]"),
        (told(top((7, BEST))), "the best tokens there are [7]"),
        (told({**TIE, "id": 4, "logprob": -2.0}), "the best tokens there are [7, 9]"),
        (told(TIE, [1, 2, 5]), "another request"),
        (told(TIE, [1, 2, 5, 7]), "another request"),
        (told(TIE, temperature=1.0), "another request"),
        (told(TIE, max_tokens=2), "another request"),
        (told(TIE, seed=2), "another request"),
        (told(TIE, logprobs=20), "another request"),
        (told(TIE, stop=["x"]), "another request"),
        (native([7, 8], 20, **{k: v for k, v in asked(told(TIE)).items() if k not in GREEDY}),
         "2 tokens came there"),
        (replace(told(TIE), status=500), "wanted status 200"),
        (replace(told(TIE), chunks=()), "no terminal event"),
        (replace(told(TIE), chunks=(Chunk(1, b"data: \0\n\n"),)), "NUL"),
    ],
)  # fmt: skip
def test_a_follow_up_that_shows_no_near_tie_fails(seen: Exchange, says: str) -> None:
    found = judged([whole()], [rest([6, 9, 3])], ties=[seen])
    fails(found, "answer 1: continued from token 1, differs 1 later: no near-tie, ")
    fails(found, says)


HOSTILE = [
    {},
    {"logprob": BEST},
    {**TIE, "top": {}},
    {**TIE, "top": 7},
    {**TIE, "top": "ab"},
    {**TIE, "top": {"7": BEST}},
    {**TIE, "top": [7, 9]},
    {**TIE, "top": [{"id": 7}, {"id": 9}]},
    {**TIE, "top": [{"id": [7], "logprob": BEST}, {"id": {}, "logprob": SECOND}]},
    {**TIE, "top": [{"id": None, "logprob": BEST}, {"id": 9, "logprob": SECOND}]},
    {**TIE, "top": [{"id": 7, "logprob": "0"}, {"id": 9, "logprob": None}]},
    {**TIE, "logprob": None},
    {**TIE, "logprob": 10**400},
    {**TIE, "top": [{"id": 7, "logprob": 10**400}, {"id": 9, "logprob": 10**400}]},
    top((7, 1e300), (9, 1e300)),
    top((7, -0.1), (9, -0.1)),
    top((9, SECOND), (7, BEST)),
    top((7, BEST), (7, BEST), (9, SECOND)),
    {**TIE, "logprob": -3.0},
]


@pytest.mark.parametrize("token", HOSTILE)
def test_forged_alternatives_fail_and_crash_nothing(token: Mapping[str, Any]) -> None:
    fails(judged([whole()], [rest([6, 9, 3])], ties=[told(token)]), "no near-tie, ")


# the same through the OpenAI API


def named(ids: Sequence[int], tops: Any = None, **more: Any) -> dict[str, Any]:
    spelled = [f"token_id:{id_}" for id_ in ids]
    shown = {"tokens": spelled, "token_logprobs": [BEST] * len(ids), "top_logprobs": tops, **more}
    return {"choices": [{"index": 0, "text": "x", "finish_reason": None, "logprobs": shown}]}


def completion(chunk: Mapping[str, Any], at_ms: float, **sent: Any) -> Exchange:
    counts = {"choices": [], "usage": usage(3, 9)}
    end = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    frames = [f"data: {json.dumps(one)}\n\n" for one in (chunk, end, counts)]
    body = {"user": f"{at_ms}", "max_tokens": 8, "stream": True, **GREEDY, "logprobs": 1, **sent}
    chunks = [
        Chunk(MS + n, frame.encode()) for n, frame in enumerate([*frames, "data: [DONE]\n\n"])
    ]
    answer = exchange("/v1/completions", sent=body, at_ms=at_ms, headers=SSE)
    return replace(answer, chunks=tuple(chunks))


def through_openai(ids: Sequence[int], chunk: Mapping[str, Any] | None = None) -> Finding:
    first = completion(named(WHOLE), 0, prompt=PROMPT)
    after = completion(named(ids), 9, prompt=[*PROMPT, 5])
    there = {"prompt": [*PROMPT, 5, 6], "max_tokens": 1, "logprobs": 2}
    ties = {"ties": [completion(chunk, 20, **there)]} if chunk else {}
    return judged([first], [after], vocabulary={}, **ties)


SPELLED = {"token_id:9": SECOND, "token_id:7": BEST}


def test_openai_answers_continue_themselves_but_for_near_ties() -> None:
    assert through_openai([6, 7, 8]).verdict == Verdict.PASS
    fails(through_openai([6, 9, 3]), "nothing tells the two best tokens there")
    for chosen, logprob in ((7, BEST), (9, SECOND)):
        found = through_openai([6, 9, 3], named([chosen], [SPELLED], token_logprobs=[logprob]))
        assert (found.verdict, found.numbers["near_ties"]) == (Verdict.PASS, 1), found


@pytest.mark.parametrize(
    "tops",
    [
        None, 7, [], [None], [7], [[7]], {"token_id:7": BEST}, ["token_id:7"],
        [{"token_id:7": None, "token_id:9": "0"}], [{"token_id:7": BEST}],
        [{"token_id:7": BEST, "token_id:9": -1.2}], [{"token_id:7": BEST, "token_id:4": SECOND}],
        [{"token_id:7": 10**400, "token_id:9": BEST}], [{"token_id:7": -0.1, "token_id:9": -0.1}],
        [{**SPELLED, "token_id:4": -0.72}],
    ],
)  # fmt: skip
def test_forged_openai_alternatives_fail_and_crash_nothing(tops: Any) -> None:
    fails(through_openai([6, 9, 3], named([7], tops)), "no near-tie, ")


@pytest.mark.parametrize(
    "strange",
    [
        {"logprobs": 7},
        {"logprobs": ["tokens"]},
        {"logprobs": "tokens token_logprobs"},
        {"token_ids": 7},
        {"token_ids": {"0": 7}},
        {"token_ids": [[7]]},
    ],
)
def test_strange_openai_tokens_fail_and_crash_nothing(strange: dict[str, Any]) -> None:
    chunk = named([7], [SPELLED])
    chunk["choices"][0].update(strange)
    fails(through_openai([6, 9, 3], chunk), "no near-tie, ")
