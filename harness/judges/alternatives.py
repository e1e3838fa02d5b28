"""A token's reported alternatives, read as what an engine that means harm may have sent."""

import math
from collections.abc import Mapping

from harness.judges.rule import fields, need
from harness.observation import Json

SUM_TOLERANCE = 1e-4
LOGPROB_TOLERANCE = 1e-6


def checked_top(raw: Mapping[str, Json]) -> list[tuple[Json, float]]:
    """The alternatives of a token, best first, as (id or spelling, logprob).

    Broken where they are none, or no distribution that the token could have been drawn from.
    """
    top = [_entry(entry) for entry in _listed(raw)]
    values = [value for _, value in top]
    need(values == sorted(values, reverse=True), "alternatives are not in order")
    need(len(dict(top)) == len(top), "an alternative stands twice")
    total = math.fsum(math.exp(min(value, 1.0)) for value in values)
    need(total <= 1 + SUM_TOLERANCE, f"the alternatives' probabilities sum to {total:.4f}")
    fields(raw, {"logprob": "number"}, "token")
    own, logprob = dict(top).get(raw["id"]), float(raw["logprob"])
    need(
        own is None or abs(own - logprob) < LOGPROB_TOLERANCE,
        "a token's logprob differs from its own entry among the alternatives",
    )
    need(own is not None or logprob <= values[-1] + LOGPROB_TOLERANCE, "a better token is left out")
    return top


def _listed(raw: Mapping[str, Json]) -> list[Json]:
    top = raw.get("top") or []
    need(isinstance(top, list), f"a token's alternatives are no list: {top!r:.60}")
    need(bool(top), "a token came without its alternatives")
    return list(top)


def _entry(entry: Json) -> tuple[Json, float]:
    need(isinstance(entry, dict), f"an alternative is no object: {entry!r:.60}")
    fields(entry, {"id": "id", "logprob": "number"}, "alternative")
    return entry["id"], float(entry["logprob"])
