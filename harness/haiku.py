"""The haiku challenge: the current minute in words, a code word of this run, and the prompts."""

import re
from dataclasses import dataclass
from typing import Any, Final

from harness.challenge import Challenge

CHECK: Final = "G4-HAIKU"
LINES: Final = 3
FIXED_SEED: Final = 42
FIXED_QUESTION: Final = (
    "Write a haiku about GPU computing in exactly three lines, with the word twenty-nine in it."
)
"""What the goldens of profile m0 answer, greedily and with the fixed seed."""

ONES: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
TENS: Final = ("", "", "twenty", "thirty", "forty", "fifty")

CODE_WORDS: Final = (
    "amber", "anchor", "apple", "arrow", "autumn", "basket", "beacon", "birch", "blossom",
    "branch", "bridge", "bronze", "butter", "candle", "canyon", "carpet", "castle", "cedar",
    "cherry", "circle", "cloud", "clover", "cobalt", "copper", "coral", "cotton", "crystal",
    "dagger", "daisy", "desert", "diamond", "dolphin", "dragon", "eagle", "echo", "ember",
    "falcon", "feather", "fern", "flame", "forest", "fountain", "galaxy", "garden", "ginger",
    "glacier", "granite", "harbor", "hazel", "hollow", "honey", "island", "ivory", "jasmine",
    "jungle", "kettle", "ladder", "lagoon", "lantern", "lemon", "lily", "lotus", "maple",
    "marble", "meadow", "mirror", "mountain", "nectar", "ocean", "olive", "orchid", "oyster",
    "paper", "pearl", "pebble", "pepper", "pine", "planet", "prairie", "pumpkin", "quartz",
    "raven", "ribbon", "river", "rocket", "saddle", "saffron", "salmon", "shadow", "silver",
    "spider", "spiral", "stable", "summer", "sunset", "temple", "thunder", "tiger", "timber",
    "tulip", "tunnel", "turtle", "valley", "velvet", "violet", "walnut", "willow", "winter",
    "wizard", "zebra",
)  # fmt: skip

_EXAMPLES: Final = (
    ("nineteen", "parrot", "silent warps awake", "threads cross the shared memory"),
    ("forty-two", "needle", "tensor cores now hum", "a thousand kernels take flight"),
    ("six", "barley", "warm silicon glows", "the scheduler counts its blocks"),
    ("thirty-one", "magnet", "registers fill up", "bandwidth flows like morning rain"),
    ("sixteen", "lizard", "caches hold their breath", "one more block begins to run"),
    ("zero", "barrel", "pipelines are still", "all the lanes wait for the clock"),
    ("fifty-four", "cactus", "matrices align", "numbers march in even rows"),
)


@dataclass(frozen=True)
class HaikuChallenge:
    """What one attempt asks for; all but the minute follows from run, check and attempt."""

    nonce_code: str
    minute_word: str
    code_word: str
    seed: int


def haiku_challenge(nonce: str, attempt: int, minute: int) -> HaikuChallenge:
    """The challenge of an attempt made in this minute (0…59) of the hour, UTC."""
    challenge = Challenge(nonce, CHECK, attempt)
    draw = challenge.draw()
    return HaikuChallenge(
        nonce_code=challenge.code_word,
        minute_word=minute_word(minute),
        code_word=draw.choice(CODE_WORDS),
        seed=draw.getrandbits(63),
    )


def minute_word(minute: int) -> str:
    """The minute in words: 0 is "zero", 55 is "fifty-five"."""
    if not 0 <= minute <= 59:
        raise ValueError(f"minute: wanted 0 to 59, got {minute}")
    if minute < len(ONES):
        return ONES[minute]
    tens, ones = divmod(minute, 10)
    return TENS[tens] if ones == 0 else f"{TENS[tens]}-{ONES[ones]}"


def few_shot_prompt(asked: HaikuChallenge) -> str:
    """A prompt that a small model can go on from: each example copies its two words twice."""
    lines = ["Each haiku about GPU computing begins and ends with its words, copied exactly.", ""]
    for minute, word, first, second in _EXAMPLES:
        lines += [
            _head(minute, word) + f" {minute} {word}",
            first,
            f"{second}, {minute} {word}",
            "",
        ]
    head = _head(asked.minute_word, asked.code_word)
    return "\n".join([*lines, f"Reference: {asked.nonce_code}", head])


def chat_prompt(asked: HaikuChallenge) -> str:
    """What a model that can write is asked, as a user's message."""
    return (
        f"Write a haiku about GPU computing in exactly three lines. It must contain the word "
        f'"{asked.minute_word}" exactly once, and the word "{asked.code_word}". '
        f"Answer with the haiku alone. Reference: {asked.nonce_code}."
    )


def haiku_request(asked: HaikuChallenge, *, chat: bool) -> dict[str, Any]:
    """What is asked of the engine: a conversation (profile m0), else the few-shot prompt."""
    fields: dict[str, Any] = {"temperature": 0.0, "seed": asked.seed}
    if chat:
        message = {"role": "user", "content": chat_prompt(asked)}
        return {"messages": [message], "max_tokens": 1024, **fields}
    return {"prompt": few_shot_prompt(asked), "max_tokens": 48, "stop": ["\n\n"], **fields}


def what_is_wrong(asked: HaikuChallenge, text: str, *, chat: bool) -> str:
    """What the words of a completion lack; empty if nothing.

    Both words stand in it as whole words; a model that can be talked to says the minute exactly
    once, in three lines that are not empty.
    """
    counts = {word: _occurrences(word, text) for word in (asked.minute_word, asked.code_word)}
    for word, count in counts.items():
        if count == 0:
            return f"the completion lacks {word!r}: {text!r:.160}"
    lines = sum(bool(line.strip()) for line in text.splitlines())
    if chat and counts[asked.minute_word] != 1:
        said = counts[asked.minute_word]
        return f"{asked.minute_word!r} stands {said} times in it, wanted once: {text!r:.160}"
    if chat and lines != LINES:
        return f"the haiku has {lines} lines, wanted {LINES}: {text!r:.160}"
    return ""


def _occurrences(word: str, text: str) -> int:
    return len(re.findall(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE))


def _head(minute: str, word: str) -> str:
    return f"Words: {minute} {word}\nHaiku:"
