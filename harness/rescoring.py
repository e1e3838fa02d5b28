"""The re-scoring challenge: its requests, drawn from a nonce, and the reference's replies to them.

Ordinary traffic that has every family of requests that black-box probes send: the suites send it to
the engine under test, `haikugate calibrate` to honest engines and to engines that cheat.
"""

import random
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Any, Final

from harness import traffic
from harness.challenge import Challenge
from harness.clients import EngineClient
from harness.clients.http import answer, told_ids
from harness.clients.native import NativeClient
from harness.judges.stream import WHOLE, answer_or_nothing, parts_at, read_or_nothing
from harness.judges.stream import asked as asked_fields
from harness.observation import Exchange, Observation
from harness.rescore import SCORED
from harness.traffic import Request, reproducible

CHECK: Final = "G4-GENUINE-RESCORE"
TEST: Final = "test_reference_accepts_every_token"
EARLY, EARLY_AMONG = 6, 8
BETWEEN_S: Final = 31.0
NO_PAUSE_S: Final = 1e-3
ENOUGH: Final = 6
"""So many requests that part from their replay leave no doubt; the replay ends there."""

RELATIONS: Final = (
    *("again",) * 2, *("changed",) * 3, *("near",) * 2, "clones", *("ids",) * 4, "whole",
)  # fmt: skip
BASES: Final[Mapping[str, Sequence[str]]] = {
    "again": ("greedy", "sampled", "logprobs", "chat", "long"),
    "changed": ("greedy", "sampled", "logprobs", "chat"),
    "near": ("greedy", "sampled", "logprobs", "long"),
    "clones": ("greedy", "sampled"),
    "ids": ("greedy",),
    "whole": ("greedy",),
}
"""What kinds of earlier requests each relation comes back to."""

CLONES: Final = 2
TOGETHER_RATE: Final = 0.1
MOST_TOGETHER: Final = 3
LIKED_RATE: Final = 0.6
UNSEEDED: Final = 2


@dataclass(frozen=True)
class Planned:
    """One request of the plan; `together` with the one before it, or when it is due."""

    kind: str
    request: Request
    together: bool = False


@dataclass(frozen=True)
class Rescoring:
    """The requests of one run with their kinds, in their drawn order, and when each is due.

    `early` are the places of requests that are asked again late; `tail` is what follows the
    requests: those again, as places, among fresh ones that nothing tells from them. Requests that
    are due at one moment are sent at once.
    """

    kinds: Sequence[str]
    requests: Sequence[Request]
    early: Sequence[int]
    tail: Sequence[int | Planned]
    due_s: Sequence[float]

    @property
    def planned(self) -> list[Planned]:
        """The requests with their kinds."""
        return [Planned(*one) for one in zip(self.kinds, self.requests, strict=True)]

    @property
    def groups(self) -> list[list[Planned]]:
        """The requests in their order, those together that are sent at once."""
        planned = self.planned
        return [group for _, group in at_once(planned, self.due_s[: len(planned)])]

    @property
    def n_first(self) -> int:
        """How many are asked first: EARLY_AMONG, and what is due with the last of them."""
        return bisect_right(self.due_s, self.due_s[EARLY_AMONG - 1])

    def due_within(self, between_s: float) -> list[float]:
        """When each is due if so much time lies between the early ones and the tail; no pauses: 0.

        What is due at one moment stays so, and nothing else comes to be.
        """
        factor = max(between_s, NO_PAUSE_S) / BETWEEN_S
        return [moment_s * factor for moment_s in self.due_s]

    @classmethod
    def drawn(cls, nonce: str) -> "Rescoring":
        """What this nonce draws: always the same."""
        draw = Challenge(nonce, CHECK).draw()
        planned = _planned(draw)
        early = draw.sample(range(EARLY_AMONG), EARLY)
        after: list[int | Planned] = [*early, *(_any(draw, planned) for _ in early)]
        return cls(
            kinds=[one.kind for one in planned],
            requests=[one.request for one in planned],
            early=early,
            tail=draw.sample(after, len(after)),
            due_s=_due_s(draw, [one.together for one in planned], len(after)),
        )


def _planned(draw: random.Random) -> list[Planned]:
    """Fresh requests, and others that come back to them anywhere after them, to one most often."""
    planned = [_fresh(draw, kind) for kind in draw.sample(traffic.KINDS, len(traffic.KINDS))]
    liked = draw.choice([one.request["prompt"] for one in planned if one.kind == "greedy"])
    for relation in draw.sample(RELATIONS, len(RELATIONS)):
        bases = [i for i, one in enumerate(planned) if one.kind in BASES[relation]]
        favourites = [i for i in bases if planned[i].request.get("prompt") == liked]
        base = draw.choice(favourites if favourites and draw.random() < LIKED_RATE else bases)
        place = base + 1 if draw.random() < 0.5 else draw.randint(base + 1, len(planned))
        planned[place:place] = _related(draw, relation, planned[base])
    return _without_seeds(draw, _parted(planned))


def _fresh(draw: random.Random, kind: str) -> Planned:
    return Planned(kind, traffic.fresh(draw, kind), draw.random() < TOGETHER_RATE)


def _any(draw: random.Random, planned: Sequence[Planned]) -> Planned:
    """One more request as the planned ones are, alone."""
    relation = draw.choice((*RELATIONS, *["fresh"] * len(traffic.KINDS)))
    bases = [one for one in planned if one.kind in BASES.get(relation, ())]
    if relation == "fresh":
        return replace(_fresh(draw, draw.choice(traffic.KINDS)), together=False)
    return replace(_related(draw, relation, draw.choice(bases))[0], together=False)


def _related(draw: random.Random, relation: str, base: Planned) -> list[Planned]:
    if relation == "clones":
        return [replace(base, together=True)] * CLONES
    if relation == "changed":
        return [Planned(*traffic.changed(draw, base.kind, base.request))]
    if relation == "near":
        return [Planned(base.kind, traffic.near(draw, base.request))]
    if relation == "again":
        return [replace(base, together=False)]
    longer = {**base.request, "max_tokens": traffic.max_tokens(draw)}
    return [Planned(relation, longer if relation == "ids" else base.request)]


def _parted(planned: Sequence[Planned]) -> list[Planned]:
    """No more than MOST_TOGETHER at once."""
    kept: list[Planned] = []
    for one in planned:
        full = all(before.together for before in kept[-MOST_TOGETHER + 1 :])
        kept.append(replace(one, together=one.together and bool(kept) and not full))
    return kept


def _without_seeds(draw: random.Random, planned: Sequence[Planned]) -> list[Planned]:
    """A few sampled requests leave the seed to the engine."""
    hot = [i for i, one in enumerate(planned) if one.kind in traffic.SAMPLED]
    bare = draw.sample(hot, UNSEEDED)
    return [
        replace(one, request={k: v for k, v in one.request.items() if k != "seed"})
        if place in bare
        else one
        for place, one in enumerate(planned)
    ]


def _due_s(draw: random.Random, together: Sequence[bool], tail: int) -> list[float]:
    """When each request is due: gaps as independent clients leave them (exponential).

    They are stretched so that BETWEEN_S lie between the last early request and the tail.
    """
    alone = [not one for one in together] + [True] * tail
    moments = list(accumulate(draw.expovariate(1.0) * one for one in alone))
    first, last = moments[EARLY_AMONG - 1], moments[len(together)]
    return [moment * BETWEEN_S / (last - first) for moment in moments]


def at_once(
    planned: Sequence[Planned], due_s: Sequence[float]
) -> Iterator[tuple[float, list[Planned]]]:
    """Each moment with the requests that are due at it."""
    for moment_s, group in groupby(zip(due_s, planned, strict=True), lambda one: one[0]):
        yield moment_s, [one for _, one in group]


@dataclass
class Asker:
    """Sends planned requests to one engine, and remembers answers that others go on from."""

    client: EngineClient
    said: dict[str, list[int]] = field(default_factory=dict)

    def ask(self, kind: str, request: Request) -> Exchange:
        """The engine's answer to a request of this kind."""
        if kind == WHOLE:
            return self.client.whole(**request)
        if kind == "ids" and self.client.kind == NativeClient.kind:
            return self.client.execute(**self._by_ids(request))
        seen = self.client.execute(**request)
        if kind == "greedy" and self.client.kind == NativeClient.kind:
            self.said[request["prompt"]] = read_or_nothing(seen).ids
        return seen

    def paced(self, planned: Sequence[Planned], due_s: Sequence[float]) -> list[Exchange]:
        """The requests one after the other, none sooner after the one before than they are due.

        Those that are due at one moment are sent at once. `due_s` may begin with the moment of the
        request before the first of these.
        """
        sent_s, sent = time.monotonic(), list[Exchange]()
        last_s = due_s[0] if len(due_s) > len(planned) else 0.0
        for moment_s, group in at_once(planned, due_s[len(due_s) - len(planned) :]):
            time.sleep(max(0.0, sent_s + moment_s - last_s - time.monotonic()))
            sent_s, last_s = time.monotonic(), moment_s
            sent += self.ask_at_once(group)
        return sent

    def ask_at_once(self, group: Sequence[Planned]) -> list[Exchange]:
        """The answers to requests that are sent at one moment."""
        with ThreadPoolExecutor(len(group)) as pool:
            return list(pool.map(lambda one: self.ask(one.kind, one.request), group))

    def _by_ids(self, request: Request) -> Request:
        """The prompt as token ids, with the first of those that answered it before."""
        prompt_ids = told_ids(self.client.tokenize(request["prompt"], add_special=True))
        own = self.said.get(request["prompt"], [])
        k = request.get("seed", request["max_tokens"]) % len(own) if own else 0
        return {**_without_prompt(request), "prompt_ids": [*prompt_ids, *own[:k]]}


def _without_prompt(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "prompt"}


def as_sent(request: Request, job: Exchange) -> dict[str, Any]:
    """A request as its job was sent: by token ids where those were made up on the way."""
    sent = asked_fields(job)
    if "prompt_ids" not in sent:
        return dict(request)
    return {**_without_prompt(request), "prompt_ids": sent["prompt_ids"]}


def ask_again(client: EngineClient, kind: str, request: Request, job: Exchange) -> Exchange:
    """The same of the reference, with the seed that the engine says it drew itself."""
    wanted = as_sent(request, job)
    if kind == WHOLE:
        return client.whole(**wanted)
    started = read_or_nothing(job).started or {}
    drawn = {"seed": started["seed"]} if started and not reproducible(wanted) else {}
    return client.execute(**wanted, **drawn)


@dataclass(frozen=True)
class Replies:
    """The reference's replays of a run's requests, and its scores of the greedy jobs' tokens."""

    replays: Sequence[Exchange] = ()
    scores: Sequence[Exchange] = ()


def score(client: EngineClient, request: Request, job: Exchange) -> Exchange:
    """The reference's scores of a job's tokens after its prompt, as the reference encodes that."""
    sent = as_sent(request, job)
    if "prompt_ids" in sent:
        ids = sent["prompt_ids"]
    else:
        ids = answer(client.tokenize(sent["prompt"], add_special=True))["ids"]
    return client.score(list(ids), read_or_nothing(job).ids)


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
        again = ask_again(asking, kind, request, job)
        scorable = kind in SCORED and asking.kind == scorer.kind
        scores = [score(scorer, request, job)] if scorable else []
        found = Replies([*found.replays, again], [*found.scores, *scores])
        both = (answer_or_nothing(again, kind), answer_or_nothing(job, kind))
        parted += parts_at(*both) is not None
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
