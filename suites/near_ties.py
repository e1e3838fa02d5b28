"""What is asked where an answer and its continuation part: the two best tokens there."""

from collections.abc import Callable, Sequence
from typing import Any

from harness.judges.stream import asked
from harness.launch import RunningEngine
from harness.near_tie import follow_up, parting
from harness.observation import Exchange


def follow_ups(
    engine: RunningEngine,
    wholes: Sequence[Exchange],
    rests: Sequence[Exchange],
    ids_of: Callable[[Exchange], list[int]],
) -> dict[str, Any]:
    """One request for each answer that parts: `ties`, and in `tied` the answers' numbers from 1.

    Nothing where all answers continue themselves, or where one of the two only ends earlier.
    """
    ties, tied = [], []
    for number, (whole, rest) in enumerate(zip(wholes, rests, strict=True), 1):
        said = ids_of(rest)
        at = parting(_from_there(ids_of(whole), whole, rest), said) if said else None
        if at is not None:
            ties.append(engine.client.execute(**follow_up(asked(rest), said[:at])))
            tied.append(number)
    return {"ties": ties, "tied": tied} if ties else {}


def _from_there(ids: list[int], whole: Exchange, rest: Exchange) -> list[int]:
    """An answer's ids from where it was asked on: of its tokens, so many fewer were asked for."""
    return ids[asked(whole)["max_tokens"] - asked(rest)["max_tokens"] :]
