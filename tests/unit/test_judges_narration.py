"""The judges of narration and redaction: what they pass, and how each rule fails."""

import json
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.narration import EVENTS, PLANTED, SHARED
from harness.observation import Finding, Observation, Verdict
from tests.unit.recorded import events, exchange, run, stream

VALUES = {"text": "x", "count": 2, "number": 1.5}
JOB: dict[str, dict[str, Any]] = {
    "execute_end": {"job_id": "job at 0", "tokens_in": 3},
    "cancel": {"job_id": "gone"},
}
Line = dict[str, Any]


def line(event: str) -> Line:
    filled = {name: VALUES[kind] for name, kind in {**SHARED, **EVENTS[event]}.items()}
    return {**filled, "event": event, **JOB.get(event, {}), "error_kind": "INVALID_REQUEST"}


LIFE = [line(event) for event in EVENTS]


def changed(event: str, /, **fields: Any) -> list[Line]:
    return [{**x, **fields} if x["event"] == event else x for x in LIFE]


def narrated(lines: list[Line], raw: str = "", code: int = 0, refused: int = 400) -> Finding:
    sent = {"job_id": "gone", "prompt": "p", "max_tokens": 9}
    error = {"code": "CANCELLED", "message": "m", "retriable": False}
    named = {
        "jobs": (run(["a", "b"]),),
        "refused": (exchange("/execute", {}, sent={}, status=refused),),
        "cancelled": (stream([*events(["a"], sent)[:-2], ("error", error)], sent),),
    }
    stderr = "\n".join(map(json.dumps, lines)) + raw
    facts = {"exit": {"code": code, "stderr": stderr}}
    return JUDGES["G4-NARRATION"](Observation("G4-NARRATION", "t", 1, named, facts), {})


def test_a_whole_life_passes() -> None:
    assert narrated(LIFE).verdict == Verdict.PASS, narrated(LIFE).message


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_is_missed(event: str) -> None:
    assert narrated([x for x in LIFE if x["event"] != event]).verdict == Verdict.FAIL


@pytest.mark.parametrize(
    ("event", "name"),
    [*(("ready", n) for n in SHARED), *((e, n) for e, wanted in EVENTS.items() for n in wanted)],
)
def test_each_field_is_missed(event: str, name: str) -> None:
    without = [
        {k: v for k, v in x.items() if x["event"] != event or k != name or k == "event"}
        for x in LIFE
    ]
    if name == "event":
        without = changed(event, event="")
    assert narrated(without).verdict == Verdict.FAIL


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([*LIFE[::-1]], "from shutdown to startup"),
        (changed("ready", event="surprise"), "unknown event"),
        (changed("ready", human="x" * 101), "human has 101"),
        (changed("ready", worker_id="y"), "2 worker ids"),
        (changed("execute_end", tokens_out=3), "tokens in and out"),
        (changed("execute_end", tokens_in=4), "tokens in and out"),
        (changed("execute_end", job_id="z"), "0 execute_end lines"),
        (changed("cancel", job_id="z"), "0 cancel lines"),
        (changed("error", error_kind="INTERNAL"), "the refusal is not told"),
        ([], "not a line"),
    ],
)
def test_each_rule_of_narration_can_fail(lines: list[Line], said: str) -> None:
    found = narrated(lines)
    assert (found.verdict, said in found.message) == (Verdict.FAIL, True), found.message


def test_other_output_a_bad_end_and_a_request_that_was_taken_fail() -> None:
    assert narrated(LIFE, raw="\nnot json").verdict == Verdict.FAIL
    assert narrated(LIFE, code=1).verdict == Verdict.FAIL
    assert narrated(LIFE, refused=200).verdict == Verdict.FAIL


WORDS = {name: f"canary-{name}" for name in (*PLANTED, "spoken 1", "spoken 2")}
LOG = '"execute_end"\n"shutdown"\n'


def redacted(**new: Any) -> Finding:
    sent = {"prompt": " ".join(new.get("sent", WORDS.values()))}
    statuses = new.get("statuses", (401, 200, 401, 202))
    asked, text = new.get("asked", "canary-spoken 2, "), new.get("text", "so canary-spoken 2")
    named = {
        "answers": (exchange("/execute", {}, sent=sent),),
        "completions": (run([text], prompt=asked),),
        "keyed": tuple(exchange("/health", {}, status=s) for s in statuses),
    }
    logs = new.get("logs", [LOG, LOG])
    exits = [{"stdout": new.get("stdout", ""), "stderr": text} for text in logs]
    facts = {"words": WORDS, "keys": new.get("keys", ["the-first-key"]), "exits": exits}
    return JUDGES["G4-REDACTION"](Observation("G4-REDACTION", "t", 1, named, facts), {})


def test_a_silent_log_passes() -> None:
    assert redacted().verdict == Verdict.PASS, redacted().message


@pytest.mark.parametrize("word", [*WORDS.values(), "the-first-key", "Canary-Prompt"])
def test_a_printed_word_fails(word: str) -> None:
    assert redacted(logs=[LOG, LOG + word]).verdict == Verdict.FAIL
    assert redacted(stdout=word).verdict == Verdict.FAIL


def test_a_key_that_was_not_wanted_fails() -> None:
    assert redacted(statuses=(200, 200, 401, 202)).verdict == Verdict.FAIL


@pytest.mark.parametrize(
    "new",
    [
        {"sent": ["nothing"]},
        {"text": "nothing"},
        {"asked": "nothing"},
        {"logs": [LOG, "cut off"]},
        {"logs": ['"shutdown"', LOG]},
        {"logs": []},
    ],
)
def test_what_was_not_planted_or_seen_is_an_error(new: dict[str, Any]) -> None:
    assert redacted(**new).verdict == Verdict.ERROR
