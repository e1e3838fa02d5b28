"""The re-scoring challenge: its requests, drawn from a nonce, and the reference's replies to them.

Ordinary text, parameters and order: the suites send it to the engine under test, `haikugate
calibrate` to honest engines and to engines that cheat.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from harness.challenge import Challenge, conversation, opening, paragraph, sampled
from harness.clients import EngineClient
from harness.judges.stream import parts_at, read_or_nothing
from harness.observation import Exchange, Observation
from harness.rescore import SCORED

CHECK = "G4-GENUINE-RESCORE"
TEST = "test_reference_accepts_every_token"
KINDS = ("greedy", "sampled", "logprobs", "chat", "long")
REPEATS = 6
KINDS_TOTAL = len(KINDS) * REPEATS
EARLY, EARLY_AMONG = 4, 6
BETWEEN_S = 31.0
ENOUGH = 6
"""So many requests that part from their replay leave no doubt; the replay ends there."""


def mixed(draw: random.Random, kind: str) -> dict[str, Any]:
    """One request of a kind, as an ordinary client sends it."""
    max_tokens = draw.randint(16, 48)
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"prompt": opening(draw), "temperature": 0.0, "seed": draw.getrandbits(63)},
        "logprobs": {"prompt": opening(draw), "logprobs": draw.randint(1, 5), **sampled(draw)},
        "sampled": {"prompt": opening(draw), **sampled(draw)},
        "chat": {"messages": conversation(draw), "temperature": 0.0, "seed": draw.getrandbits(63)},
        "long": {"prompt": paragraph(draw, 24), "temperature": 0.0, "seed": draw.getrandbits(63)},
    }
    return {**kinds[kind], "max_tokens": max_tokens}


@dataclass(frozen=True)
class Rescoring:
    """The requests of one run with their kinds, in their drawn order, and when each is due.

    `early` are the places of requests that are asked again late; `tail` is what follows the
    requests: those again, as places, among fresh ones that nothing tells from them.
    """

    kinds: Sequence[str]
    requests: Sequence[Mapping[str, Any]]
    early: Sequence[int]
    tail: Sequence[int | Mapping[str, Any]]
    due_s: Sequence[float]

    @classmethod
    def drawn(cls, nonce: str) -> "Rescoring":
        """What this nonce draws: always the same."""
        draw = Challenge(nonce, CHECK).draw()
        kinds = list(KINDS * REPEATS)
        draw.shuffle(kinds)
        requests = [mixed(draw, kind) for kind in kinds]
        early = draw.sample(range(EARLY_AMONG), EARLY)
        fresh = [mixed(draw, draw.choice(KINDS)) for _ in early]
        after: list[int | Mapping[str, Any]] = [*early, *fresh]
        tail = draw.sample(after, len(after))
        return cls(kinds, requests, early, tail, _due_s(draw, len(requests) + len(tail)))


def _due_s(draw: random.Random, n: int) -> list[float]:
    """When each request is due: gaps as independent clients leave them (exponential).

    They are stretched so that BETWEEN_S lie between the last early request and the tail.
    """
    moments = list(accumulate(draw.expovariate(1.0) for _ in range(n)))
    first, last = moments[EARLY_AMONG - 1], moments[KINDS_TOTAL]
    return [moment * BETWEEN_S / (last - first) for moment in moments]


@dataclass(frozen=True)
class Replies:
    """The reference's replays of a run's requests, and its scores of the greedy jobs' tokens."""

    replays: Sequence[Exchange] = ()
    scores: Sequence[Exchange] = ()


def score(client: EngineClient, request: Mapping[str, Any], job: Exchange) -> Exchange:
    """The reference's scores of a job's tokens after the request's prompt."""
    prompt = client.tokenize(request["prompt"], add_special=True)
    return client.score(list(json.loads(prompt.body)["ids"]), read_or_nothing(job).ids)


def replies(
    scorer: EngineClient,
    asking: EngineClient,
    asked: Rescoring,
    jobs: Sequence[Exchange],
    *,
    enough: int = ENOUGH,
) -> Replies:
    """Ask the reference the same, job by job, until enough of them part.

    `asking` speaks the tested engine's API; where that gives no token ids nothing is scored.
    """
    found, parted = Replies(), 0
    for kind, request, job in zip(asked.kinds, asked.requests, jobs, strict=True):
        again = asking.execute(**request)
        scorable = kind in SCORED and asking.kind == scorer.kind
        scores = [score(scorer, request, job)] if scorable else []
        found = Replies([*found.replays, again], [*found.scores, *scores])
        parted += parts_at(read_or_nothing(again), read_or_nothing(job)) is not None
        if parted == enough:
            break
    return found


def observation(
    asked: Rescoring, jobs: Sequence[Exchange], told: Replies, **facts: Any
) -> Observation:
    """What the suite's test observes of these jobs and replies."""
    exchanges = {
        "jobs": tuple(jobs),
        "replays": tuple(told.replays),
        "scores": tuple(told.scores),
        "reference_health": (facts.pop("reference_health"),),
    }
    return Observation(CHECK, TEST, 1, exchanges, {"kinds": list(asked.kinds), **facts})
