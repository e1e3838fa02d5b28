"""The documented bounds of /execute as cases: what stands at a bound, and what is past it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.judges.rule import (
    Unseen,
    body,
    exchange,
    fact,
    fields,
    judge,
    need,
    passed,
    request,
    where,
)
from harness.judges.stream import read_stream
from harness.observation import Finding, Json, Judge, Limits, Observation

PROMPT: Final = "Once upon a time"
MAX_PROMPT_CHARACTERS: Final = 32_768


@dataclass(frozen=True)
class Case:
    """One request: `change` laid over a valid one (None removes a field).

    `field` names what a refusal must name; empty: the request must be accepted. `needs` says what
    only the engine knows: "vocab" adds its vocab_size to top_k, "stop" wants `n` stop tokens.
    """

    change: Mapping[str, Any]
    field: str = ""
    needs: str = ""
    n: int = 0


def _cases(field: str, accepted: Mapping[str, Any], refused: Mapping[str, Any]) -> dict[str, Case]:
    good = {f"{field}-{name}": Case({field: value}) for name, value in accepted.items()}
    bad = {f"{field}-{name}": Case({field: value}, field) for name, value in refused.items()}
    return good | bad


CASES: Final[Mapping[str, Case]] = {
    **_cases(
        "job_id",
        {"256": "j" * 256},
        {"empty": "", "257": "j" * 257, "number": 7, "missing": None},
    ),
    **_cases(
        "prompt",
        {"1": "x", "32768": " " * MAX_PROMPT_CHARACTERS},
        {"empty": "", "32769": " " * (MAX_PROMPT_CHARACTERS + 1), "number": 5, "missing": None},
    ),
    **_cases(
        "max_tokens",
        {"1": 1, "2048": 2048},
        {"0": 0, "2049": 2049, "negative": -1, "fraction": 1.5, "string": "8", "true": True},
    ),
    **_cases(
        "temperature",
        {"0": 0.0, "2": 2.0},
        {"below": -0.0001, "above": 2.0001, "string": "hot"},
    ),
    **_cases(
        "top_p",
        {"small": 1e-6, "1": 1.0},
        {"0": 0.0, "above": 1.0001, "below": -0.1},
    ),
    **_cases("top_k", {"0": 0}, {"below": -1, "fraction": 1.5}),
    "top_k-vocab": Case({"top_k": 0}, needs="vocab"),
    "top_k-above": Case({"top_k": 1}, "top_k", needs="vocab"),
    **_cases(
        "min_p",
        {"0": 0.0, "1": 1.0},
        {"below": -0.0001, "above": 1.0001},
    ),
    **_cases(
        "repetition_penalty",
        {"small": 1e-3, "2": 2.0},
        {"0": 0.0, "above": 2.0001, "below": -1.0},
    ),
    **_cases(
        "stop",
        {"none": [], "4": ["~1", "~2", "~3", "~4"]},
        {"5": ["~1", "~2", "~3", "~4", "~5"], "string": "x", "number": [1]},
    ),
    "stop-32-tokens": Case({"stop": []}, needs="stop", n=32),
    "stop-33-tokens": Case({"stop": []}, "stop", needs="stop", n=33),
    **_cases(
        "seed",
        {"0": 0, "max": 2**64 - 1},
        {"below": -1, "above": 2**64, "fraction": 1.5, "string": "7"},
    ),
    **_cases(
        "logprobs",
        {"false": False, "0": 0, "20": 20},
        {"21": 21, "below": -1, "string": "yes"},
    ),
    **_cases("cache_prompt", {"true": True}, {"string": "yes"}),
    "unknown-field": Case({"temprature": 1.0}, "temprature"),
}


def filled(case: Case, vocab_size: int, stop: str) -> dict[str, Any]:
    """The fields to send for a case, with what only the engine knows; job_id if it is its point."""
    base: dict[str, Any] = {
        "prompt": PROMPT,
        "max_tokens": 2,
        "seed": 1,
    }
    sent = {**base, **case.change}
    if case.needs == "vocab":
        sent["top_k"] = vocab_size + case.change["top_k"]
    if case.needs == "stop":
        sent["stop"] = [stop]
    return {name: value for name, value in sent.items() if value is not None}


@judge
def judge_bound(observation: Observation, limits: Limits) -> Finding:
    """The value at a bound is accepted; past it the answer is 400 and names the field."""
    name = fact(observation, "case")
    case = CASES.get(name)
    if case is None or f"[{name}]" not in observation.test:
        raise Unseen(f"{observation.test}: no case named {name!r}")
    seen = exchange(observation, "execute")
    _check_sent(observation, case, dict(request(seen)))
    if not case.field:
        stream = read_stream(seen, unfinished=True)
        need(stream.started is not None, f"{name}: accepted, but no started event came")
        return passed(f"{name}: accepted")
    table = body(seen, 400)
    fields(
        table,
        {"code": "text", "message": "text", "field": "text", "retriable": "boolean"},
        where(seen),
    )
    need(table["code"] == "INVALID_REQUEST", f"{name}: code is {table['code']!r}")
    need(table["retriable"] is False, f"{name}: a wrong request is not retriable")
    got = str(table["field"])
    need(got.partition("[")[0].partition(".")[0] == case.field, f"{name}: names field {got!r}")
    return passed(f"{name}: refused, naming {got}")


def _check_sent(observation: Observation, case: Case, sent: dict[str, Json]) -> None:
    vocab_size, stop = 0, ""
    if case.needs == "vocab":
        vocab_size = body(exchange(observation, "health"))["vocab_size"]
    if case.needs == "stop":
        asked = exchange(observation, "tokenize")
        stop = request(asked)["text"]
        n = len(body(asked)["ids"])
        if n != case.n:
            raise Unseen(f"the stop string has {n} tokens, the case wants {case.n}")
    wanted = filled(case, vocab_size, stop)
    if "job_id" not in case.change:
        sent.pop("job_id", None)
    if sent != wanted:
        raise Unseen("the recorded request is not the case's")


@judge
def judge_context(observation: Observation, limits: Limits) -> Finding:
    """Prompt plus max_tokens past the context length: 400 naming both numbers."""
    seen = exchange(observation, "execute")
    health = body(exchange(observation, "health"))
    n_prompt = len(request(seen)["prompt_ids"])
    max_tokens = request(seen)["max_tokens"]
    need(n_prompt + max_tokens > health["context_length"], "the request fits the context")
    table = body(seen, 400)
    need(table.get("code") == "INVALID_REQUEST", f"code is {table.get('code')!r}")
    message = str(table.get("message"))
    for number in (n_prompt, max_tokens):
        need(str(number) in message, f"the message does not name {number}: {message!r}")
    return passed(f"{n_prompt} + {max_tokens} tokens refused: {message}")


@judge
def judge_validation(observation: Observation, limits: Limits) -> Finding:
    """One case, or the context length."""
    if observation.test == "test_context_length":
        return judge_context(observation, limits)
    return judge_bound(observation, limits)


JUDGES: Final[Mapping[str, Judge]] = {"G1-HTTP-VALIDATION": judge_validation}
