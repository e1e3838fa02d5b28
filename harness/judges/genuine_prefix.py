"""Whether an engine's answers go on as they did, asked on from their own first tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import ProtocolError
from harness.judges.alternatives import checked_top
from harness.judges.completion import spelled_ids
from harness.judges.rule import (
    Broken,
    Unseen,
    body,
    exchanges,
    fields,
    judge,
    limit,
    need,
    passed,
    where,
)
from harness.judges.stream import Stream, asked, finished, is_native
from harness.near_tie import follow_up, parting
from harness.observation import Exchange, Finding, Judge, Limits, Observation
from harness.rescore import first_difference


@dataclass(frozen=True)
class _Continued:
    """An answer, the rest of it as it was asked for by `sent`, and their ids from there on."""

    whole: Stream
    rest: Stream
    own: Sequence[int]
    continued: Sequence[int]
    sent: Mapping[str, Any]

    @property
    def parted(self) -> list[Any]:
        """The two tokens at which they part, by what tells tokens apart; Broken if one ended."""
        at = parting(self.own, self.continued)
        need(at is not None, "one of the two ends there")
        assert at is not None
        k = len(self.whole.tokens) - len(self.own)
        return [self.whole.tokens[k + at].raw["id"], self.rest.tokens[at].raw["id"]]

    def tie_nats(self, seen: Exchange | None) -> float:
        """How far the two tokens lie apart by the follow-up; Broken says why it is no near-tie."""
        parted = self.parted
        need(seen is not None, "nothing tells the two best tokens there")
        assert seen is not None
        wanted = follow_up(self.sent, self.continued[: parting(self.own, self.continued)])
        told = {name: value for name, value in asked(seen).items() if name != "job_id"}
        need(told == wanted, "what was asked there is another request")
        tokens = finished(seen).tokens
        need(len(tokens) == 1, f"{len(tokens)} tokens came there, one was asked for")
        best = checked_top(tokens[0].raw)[:2]
        names = [name for name, _ in best]
        need(
            len(best) == 2 and set(names) == set(parted) and tokens[0].raw["id"] in names,
            f"the best tokens there are {names!r:.80}, {parted!r:.80} came",
        )
        return best[0][1] - best[1][1]


@judge
def prefix(observation: Observation, limits: Limits) -> Finding:
    """The greedy continuation of prompt + first k own tokens is the rest of the answer.

    But where the two best tokens are a near-tie, which is not the same token on every path.
    """
    wholes, rests = exchanges(observation, "wholes"), exchanges(observation, "rests")
    prompts = _prompts(observation, wholes)
    vocabulary = observation.facts.get("vocabulary") or {}
    ties = _follow_ups(observation)
    excused = []
    for number, (whole, rest, prompt) in enumerate(zip(wholes, rests, prompts, strict=True), 1):
        pair = _continued(number, (whole, rest), prompt, vocabulary)
        at = first_difference(pair.continued, pair.own)
        if at is None:
            continue
        k = len(pair.whole.tokens) - len(pair.own)
        differs = f"answer {number}: continued from token {k}, differs {at} later"
        excused.append(_excused(differs, pair, ties.get(number), limits))
        most = limit(limits, "max_near_ties")
        need(len(excused) <= most, f"{differs}: near-ties, but more than {most:.0f} of them")
    return _told(len(wholes), excused)


def _told(answers: int, excused: Sequence[float]) -> Finding:
    if not excused:
        return passed(f"{answers} answers continue themselves")
    return passed(
        f"{answers} answers continue themselves, {len(excused)} of them up to a near-tie "
        f"(at most {max(excused):.2g} nats between the two best tokens)",
        near_ties=len(excused),
        widest_near_tie_nats=max(excused),
    )


def _excused(differs: str, pair: _Continued, seen: Exchange | None, limits: Limits) -> float:
    """The gap of a near-tie; Broken says why it is none."""
    try:
        nats = pair.tie_nats(seen)
    except (Broken, ProtocolError, Unseen) as error:
        raise Broken(f"{differs}: no near-tie, {error}") from None
    most = limit(limits, "near_tie_nats")
    need(nats <= most, f"{differs}: no near-tie, {nats:.3g} nats apart, {most:g} at most are one")
    return nats


def _follow_ups(observation: Observation) -> dict[int, Exchange]:
    """What was asked where answers part, by the answer's number; bundles before it have none."""
    seen, numbers = observation.exchanges.get("ties", ()), observation.facts.get("tied") or []
    counted = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    if not counted or len(set(numbers)) != len(seen) or len(numbers) != len(seen):
        raise Unseen(f"{len(seen)} requests where answers part, wanted one for each of {numbers}")
    return dict(zip(numbers, seen, strict=True))


def _continued(
    number: int,
    pair: tuple[Exchange, Exchange],
    prompt: list[int],
    vocabulary: Mapping[str, int],
) -> _Continued:
    whole, rest = finished(pair[0]), finished(pair[1])
    ids, sent = spelled_ids(whole, vocabulary), asked(pair[1])
    k = len(sent["prompt_ids"]) - len(prompt)
    if sent["prompt_ids"] != prompt + ids[:k] or not 0 < k < len(ids):
        raise Unseen(f"continuation {number} did not start from the answer's own tokens")
    return _Continued(whole, rest, ids[k:], spelled_ids(rest, vocabulary), sent)


def _prompts(observation: Observation, wholes: Sequence[Exchange]) -> list[list[int]]:
    """Each prompt's token ids: as the engine encodes it, or as they were sent."""
    if not is_native(wholes[0]):
        return [list(asked(whole)["prompt_ids"]) for whole in wholes]
    return [_encoded(prompt) for prompt in exchanges(observation, "prompts")]


def _encoded(prompt: Exchange) -> list[int]:
    table = body(prompt)
    fields(table, {"ids": "list"}, where(prompt))
    return list(table["ids"])


JUDGES: Final[Mapping[str, Judge]] = {"G4-GENUINE-PREFIX": prefix}
