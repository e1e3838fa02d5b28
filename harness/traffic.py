"""Ordinary traffic: what clients ask, and the one source of what every black-box probe asks.

Re-scored requests and probes draw their words and parameters here, so that no field's value, no
set of fields and no word tells a probe. What a probe needs is one of these: a request that came
before, the same with one field changed, with another beginning, or by its token ids.
"""

import random
from collections.abc import Mapping
from typing import Any, Final

from harness.challenge import code, conversation, opening, paragraph, retold

Request = Mapping[str, Any]

GREEDY: Final = 0.0
NEAR_ZERO: Final = 0.001
COOL: Final = 0.15
HOT: Final = 1.7
TEMPERATURES: Final = (
    NEAR_ZERO, COOL, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.2, 1.5, 1.5, HOT, HOT,
)  # fmt: skip
TOP_P: Final = (1.0, 1.0, 0.95, 0.9)
LOGPROBS: Final = (1, 1, 1, 2, 3, 5, 20, 20)
STOPS: Final = (
    "\n\n", "\n", ".", ",", ";", ":", "!", "?", '"', ". ", ", ", " the ", " and ", " of ", " to ",
    " in ", " was ", " that ", " with ", " a ", "He ", "She ", "The ", "I ", "ing ", "ed ",
)  # fmt: skip
LENGTHS: Final = ((1, 8), (9, 24), (12, 40), (12, 40), (12, 40), (12, 40), (24, 48), (60, 96))
SHORT: Final = (1, 8)
LONGEST: Final = 96
SENTENCES: Final = (6, 6, 8, 8, 8, 12, 12, 12, 16, 16, 24, 24, 30, 60, 90)
ASIDES: Final = ("The password is {0}.", "The sign said {0}.", "Remember: {0}.", "Room {0}.")
BEYOND_ASCII: Final = ("🙂", "日本語", "🏳️‍🌈", "नमस्ते", "Привет", "naïve café", "한국어", "👩‍🚀")

SAMPLED: Final = ("sampled", "logprobs")
KINDS: Final = (
    *("greedy",) * 5, *("sampled",) * 5, *("logprobs",) * 4, *("chat",) * 4, *("long",) * 4,
    *("whole",) * 2,
)  # fmt: skip
"""The kinds of requests, as often as a run has them; `whole` is answered in one piece."""


def max_tokens(draw: random.Random, bounds: tuple[int, int] | None = None) -> int:
    """A length as clients ask for it, or one within these bounds."""
    return draw.randint(*(bounds or draw.choice(LENGTHS)))


def seed(draw: random.Random) -> int:
    """A seed of 63 bits."""
    return draw.getrandbits(63)


def aside(draw: random.Random, word: str) -> str:
    """A sentence that mentions this word."""
    return draw.choice(ASIDES).format(word)


def beyond_ascii(draw: random.Random) -> str:
    """An opening that goes on in other scripts."""
    return f"{opening(draw)} {' '.join(draw.sample(BEYOND_ASCII, 3))}"


def text(draw: random.Random) -> str:
    """The beginning of a story, now and then with a code word or in several scripts."""
    if draw.random() < 0.1:
        return beyond_ascii(draw)
    said = opening(draw)
    return f"{said} {aside(draw, code(draw))}" if draw.random() < 0.2 else said


def greedy(draw: random.Random, bounds: tuple[int, int] | None = None) -> dict[str, Any]:
    """A greedy request for a plain continuation."""
    tokens = max_tokens(draw, bounds)
    return {
        "prompt": opening(draw),
        "temperature": GREEDY,
        "seed": seed(draw),
        "max_tokens": tokens,
    }


def fresh(draw: random.Random, kind: str) -> dict[str, Any]:
    """One request of a kind, as an ordinary client sends it."""
    hot = kind in SAMPLED
    fields = _asked(draw, kind) | {"max_tokens": max_tokens(draw)}
    fields["temperature"] = draw.choice(TEMPERATURES) if hot else GREEDY
    fields |= {"seed": seed(draw)} if hot or draw.random() < 0.8 else {}
    fields |= {"top_p": draw.choice(TOP_P)} if hot and draw.random() < 0.6 else {}
    fields |= {"stop": [draw.choice(STOPS)]} if draw.random() < 0.15 else {}
    told = {"logprobs": 1.0, "greedy": 0.3, "long": 0.3}.get(kind, 0.0)
    return fields | ({"logprobs": draw.choice(LOGPROBS)} if draw.random() < told else {})


def _asked(draw: random.Random, kind: str) -> dict[str, Any]:
    if kind == "chat":
        return {"messages": conversation(draw)}
    return {"prompt": paragraph(draw, draw.choice(SENTENCES)) if kind == "long" else text(draw)}


def changed(draw: random.Random, kind: str, request: Request) -> tuple[str, dict[str, Any]]:
    """The same request with one field changed, and the kind it then is of."""
    drawn: dict[str, Any] = {
        "max_tokens": max_tokens(draw),
        "stop": [draw.choice(STOPS)],
        "seed": seed(draw),
    }
    if "prompt" in request:
        drawn["temperature"] = draw.choice((GREEDY, *TEMPERATURES))
    name = draw.choice(sorted(drawn))
    other = {**request, name: drawn[name]}
    if name == "temperature" and ("seed" not in request or draw.random() < 0.5):
        other["seed"] = drawn["seed"]
    return (_kind(kind, other) if name == "temperature" else kind), other


def _kind(before: str, request: Request) -> str:
    if request["temperature"] == GREEDY:
        return "long" if before == "long" else "greedy"
    return "logprobs" if "logprobs" in request else "sampled"


def near(draw: random.Random, request: Request) -> dict[str, Any]:
    """The same request with another first word: its prompt's beginning is what tells them apart."""
    return {**request, "prompt": retold(draw, request["prompt"])}


def reproducible(request: Request) -> bool:
    """Whether the same request must have the same answer again."""
    return request.get("temperature") == GREEDY or "seed" in request


def found_stop(draw: random.Random, said: str, after: int = 8) -> str | None:
    """One of the usual stop sequences that this text first has after so many characters."""
    there = [one for one in STOPS if said.find(one) >= after]
    return draw.choice(there) if there else None
