"""Near-ties: where the two best tokens are so close that rounding chooses between them.

An answer's tokens come from decode, and when it is continued from its own tokens, from prefill and
decode: on a GPU these round otherwise. One more request, to the suites and the judge alike, asks
for the two best tokens where the two part.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.traffic import GREEDY

ALTERNATIVES: Final = 2


def parting(own: Sequence[int], continued: Sequence[int]) -> int | None:
    """Where both have a token, and not the same; None where one is the other's beginning."""
    pairs = zip(own, continued, strict=False)
    return next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), None)


def follow_up(rest: Mapping[str, Any], said: Sequence[int]) -> dict[str, Any]:
    """The request for the next token's alternatives after `said`, where a continuation parts.

    `rest` are the fields of the continuation's request; all it does not change stay as they are.
    """
    kept = {name: value for name, value in rest.items() if name != "job_id"}
    ids = [*rest["prompt_ids"], *said]
    there = {"prompt_ids": ids, "max_tokens": 1, "temperature": GREEDY, "logprobs": ALTERNATIVES}
    return {**kept, **there}
