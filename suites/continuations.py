"""Answers that are asked on after some of their own tokens, with or without a tokenizing route."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from harness.judges.completion import Stream, spelled_ids
from harness.judges.rule import Unseen
from harness.judges.stream import read_or_nothing
from harness.launch import RunningEngine
from harness.observation import Exchange
from harness.traffic import greedy
from harness.vocabulary import Vocabulary
from suites.near_ties import follow_ups


def rest_of(
    engine: RunningEngine,
    draw: random.Random,
    ids: Sequence[int],
    own: Sequence[int],
    request: dict[str, Any],
) -> Exchange:
    """The same request, asked on after some of the answer's own tokens."""
    k = draw.randint(1, max(1, len(own) - 1))
    left = {"prompt_ids": [*ids, *own[:k]], "max_tokens": request["max_tokens"] - k}
    kept = {name: value for name, value in request.items() if name != "prompt"}
    return engine.client.execute(**{**kept, **left})


def continued_by_logprobs(
    engine: RunningEngine, draw: random.Random, vocabulary: Vocabulary | None
) -> dict[str, Any]:
    """Where nothing tokenizes: an answer's own tokens are the prompt, logprobs tell the next."""
    wholes, rests = [], []
    spelled: dict[str, int] = {}
    for _ in range(6):
        request = {**greedy(draw, (20, 40)), "logprobs": 1}
        first = read_or_nothing(engine.client.execute(**request))
        ids = ids_in(first, vocabulary)
        request = {**request, "prompt_ids": ids or [1]}
        del request["prompt"]
        whole = engine.client.execute(**request)
        stream = read_or_nothing(whole)
        own = ids_in(stream, vocabulary)
        rests.append(rest_of(engine, draw, request["prompt_ids"], own, request))
        wholes.append(whole)
        if vocabulary is not None:
            spelled |= vocabulary.of((stream, read_or_nothing(rests[-1])))
    known = partial(ids_seen, vocabulary=vocabulary)
    ties = follow_ups(engine, wholes, rests, known)
    return {"wholes": wholes, "rests": rests, "vocabulary": spelled, **ties}


def ids_seen(seen: Exchange, vocabulary: Vocabulary | None) -> list[int]:
    """The ids of a stream, as `ids_in` has them."""
    return ids_in(read_or_nothing(seen), vocabulary)


def ids_in(stream: Stream, vocabulary: Vocabulary | None) -> list[int]:
    """The ids as the API or the named tokenizer tells them; none where neither does."""
    try:
        return spelled_ids(stream, vocabulary.of((stream,)) if vocabulary else {})
    except Unseen:
        return []
