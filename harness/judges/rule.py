"""How a judge is written: it reads evidence, states rules, and passes only if all of them hold."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from harness.errors import BundleError, ProtocolError
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation, Verdict
from harness.strict_json import loads


class Broken(Exception):
    """A rule does not hold for what was observed: the verdict is fail."""


class Unseen(Exception):
    """What the rule is about was not recorded: the verdict is error."""


def judge(rule: Callable[[Observation, Limits], Finding]) -> Judge:
    """A judge from a function that returns a Finding or raises Broken, ProtocolError, Unseen."""

    @wraps(rule)
    def judged(observation: Observation, limits: Limits) -> Finding:
        try:
            return rule(observation, limits)
        except (Broken, ProtocolError) as error:
            return Finding(Verdict.FAIL, str(error))
        except Unseen as error:
            return Finding(Verdict.ERROR, str(error))

    return judged


def by_test(rules: Mapping[str, Callable[[Observation, Limits], Finding]]) -> Judge:
    """One judge for a check that several tests observe: each test's function has its own rule."""

    @judge
    def judged(observation: Observation, limits: Limits) -> Finding:
        name = observation.test.partition("[")[0]
        if name not in rules:
            raise Unseen(f"no rule for a test named {name!r}")
        return rules[name](observation, limits)

    return judged


def passed(message: str, **numbers: Json) -> Finding:
    """The finding where every rule holds."""
    return Finding(Verdict.PASS, message, numbers)


def need(holds: bool, message: str) -> None:
    """State a rule; `message` says what was wanted and what was got."""
    if not holds:
        raise Broken(message)


def exchanges(observation: Observation, name: str) -> tuple[Exchange, ...]:
    """The exchanges recorded by this name; Unseen if there are none."""
    found = observation.exchanges.get(name, ())
    if not found:
        raise Unseen(f"no exchange named {name!r} was recorded")
    return found


def exchange(observation: Observation, name: str) -> Exchange:
    """The one exchange recorded by this name."""
    found = exchanges(observation, name)
    if len(found) != 1:
        raise Unseen(f"{name!r}: wanted one exchange, {len(found)} were recorded")
    return found[0]


def fact(observation: Observation, name: str) -> Json:
    """The fact recorded by this name; Unseen if there is none."""
    if observation.facts.get(name) is None:
        raise Unseen(f"no fact named {name!r} was recorded")
    return observation.facts[name]


def limit(limits: Limits, name: str) -> float:
    """A limit of the checklist; Unseen if it states none by this name."""
    if name not in limits:
        raise Unseen(f"the checklist states no limit {name!r}")
    return limits[name]


def header(seen: Exchange, name: str) -> str | None:
    """A response header's value; Broken if it stands there more than once."""
    values = [value for key, value in seen.response_headers if key.lower() == name.lower()]
    need(len(values) <= 1, f"{where(seen)}: header {name} stands {len(values)} times")
    return values[0] if values else None


def request_header(seen: Exchange, name: str) -> str | None:
    """A request header's value, None if it was not sent."""
    return next((v for key, v in seen.request_headers if key.lower() == name.lower()), None)


def where(seen: Exchange) -> str:
    """The name of an exchange in messages."""
    return f"{seen.method} {seen.path}"


def status(seen: Exchange, wanted: int) -> None:
    """The answer came, whole, with this status."""
    got = seen.status if seen.error is None else f"{seen.status}, {seen.error}"
    need(
        seen.status == wanted and seen.error is None,
        f"{where(seen)}: wanted status {wanted}, got {got}: {said(seen)}",
    )


def said(seen: Exchange) -> str:
    """The beginning of an answer's body, for messages."""
    return seen.body[:160].decode("utf-8", errors="replace")


def body(seen: Exchange, wanted_status: int = 200) -> Mapping[str, Json]:
    """The JSON object of a whole answer with this status."""
    status(seen, wanted_status)
    return json_object(seen.body, where(seen))


def request(seen: Exchange) -> Mapping[str, Any]:
    """The JSON object that was sent."""
    try:
        sent = json.loads(seen.request_body)
    except ValueError:
        raise Unseen(f"{where(seen)}: the recorded request is not JSON") from None
    if not isinstance(sent, dict):
        raise Unseen(f"{where(seen)}: the recorded request is not a JSON object")
    return sent


def json_object(content: bytes, place: str) -> Mapping[str, Json]:
    """A strictly parsed JSON object; Broken names the place."""
    try:
        parsed = loads(content, place)
    except (ValueError, BundleError) as error:
        raise Broken(f"{place}: wanted JSON, got {content[:80]!r}: {error}") from None
    if not isinstance(parsed, dict):
        raise Broken(f"{place}: wanted a JSON object, got {content[:80]!r}")
    return parsed


_KINDS: Mapping[str, Callable[[Json], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "count": lambda value: type(value) is int and value >= 0,
    "number": lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max,
    "boolean": lambda value: type(value) is bool,
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "text": lambda value: isinstance(value, str) and bool(value),
    "id": lambda value: type(value) in (int, str),
}


def fields(table: Mapping[str, Json], wanted: Mapping[str, str], place: str) -> None:
    """Every wanted field is there and of its kind; other fields are allowed."""
    for name, kind in wanted.items():
        need(name in table, f"{place}: lacks the field {name!r}")
        need(_KINDS[kind](table[name]), f"{place}: {name} is no {kind}: {table[name]!r:.80}")


def percentile(samples: list[float], per_cent: float) -> float:
    """The nearest-rank percentile: the smallest sample that `per_cent` % do not exceed."""
    need(bool(samples), "no samples were recorded")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(per_cent / 100 * len(ordered)) - 1)]
