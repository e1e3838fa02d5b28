"""The judge of the OpenAI API: what it passes, and how each rule fails."""

from copy import deepcopy
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.openai import NAMED
from harness.observation import Finding, Observation, Verdict
from tests.unit.recorded import exchange

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def answer(kind: str) -> dict[str, Any]:
    said = {"message": {"content": "ab"}} if kind == "chat" else {"text": "ab"}
    choices = [{"finish_reason": "length", **said}]
    return {"model": "m", "choices": choices, "usage": dict(USAGE)}


def chunk(kind: str, text: str | None, finish: str | None = None) -> dict[str, Any]:
    said = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return {"choices": [{"finish_reason": finish, **said}], "usage": None}


def stream(kind: str) -> list[dict[str, Any]]:
    pieces = [chunk(kind, "a"), chunk(kind, "b"), chunk(kind, None, "length")]
    return [*pieces, {"choices": [], "usage": dict(USAGE)}]


def error(kind: str, status: int) -> dict[str, Any]:
    said = {"message": "m", "type": "t"}
    return {"kind": kind, "status": status, "message": "m", "param": "temperature", "body": said}


FACTS: dict[str, Any] = {
    "client_version": "1",
    "model": "m",
    **{kind: answer(kind) for kind in ("completion", "chat")},
    **{f"{kind}_stream": stream(kind) for kind in ("completion", "chat")},
    "refused": error("BadRequestError", 400),
    "unknown": error("NotFoundError", 404),
}


def judged(
    path: tuple[Any, ...] = (), value: Any = None, raw: str = "ab", asked: int = 7, by: str = NAMED
) -> Finding:
    facts = deepcopy(FACTS)
    if path:
        place: Any = facts
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    official = exchange("/v1/models", {}, request_headers=[(by, "2.0")])
    named = {
        "raw": (exchange("/v1/completions", {"choices": [{"text": raw}]}, sent={}),),
        "wire": (official,) * asked,
    }
    return JUDGES["G1-API-OPENAI"](Observation("G1-API-OPENAI", "t", 1, named, facts), {})


def test_a_compatible_api_passes() -> None:
    assert judged().verdict == Verdict.PASS, judged().message


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("chat", "model"), "other", "names 'other'"),
        (("chat", "choices"), [], "0 choices"),
        (("completion", "choices", 0, "finish_reason"), None, "completion: None"),
        (("completion", "choices", 0, "text"), " ", "is empty"),
        (("chat", "choices", 0, "message", "content"), None, "is empty"),
        (("chat", "usage"), None, "no usage"),
        (("chat", "usage", "prompt_tokens"), None, "prompt_tokens is no count"),
        (("chat", "usage", "completion_tokens"), 13, "13 tokens"),
        (("chat", "usage", "total_tokens"), 9, "is not the sum"),
        (("chat_stream",), [chunk("chat", "ab")], "are no stream"),
        (("chat_stream", 0), chunk("chat", "x"), "another text"),
        (("completion_stream", 2), chunk("completion", None, "stop"), "finish reasons"),
        (("chat_stream", 1), chunk("chat", "b", "length"), "finish reasons"),
        (("chat_stream", 3, "usage"), None, "0 chunks with usage"),
        (("chat_stream", 3, "choices"), chunk("chat", "")["choices"], "a last chunk of its own"),
        (
            ("chat_stream", 3, "usage"),
            {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
            "prompt_tokens differs",
        ),
        (("refused",), None, "raised nothing"),
        (("unknown", "kind"), "APIStatusError", "the client raised"),
        (("unknown", "status"), 400, "the client raised"),
        (("unknown", "message"), "", "message is no text"),
        (("unknown", "body"), None, "body is no object"),
        (("unknown", "body", "type"), None, "type is no text"),
        (("refused", "param"), None, "param is None"),
    ],
)
def test_each_rule_can_fail(path: tuple[Any, ...], value: Any, said: str) -> None:
    found = judged(path, value)
    assert (found.verdict, said in found.message) == (Verdict.FAIL, True), found.message


def test_another_text_on_the_wire_fails() -> None:
    assert judged(raw="x").verdict == Verdict.FAIL


def test_requests_of_another_client_are_an_error() -> None:
    assert judged(asked=6).verdict == Verdict.ERROR
    assert judged(by="User-Agent").verdict == Verdict.ERROR
