"""Prompts for experiments: a small built-in public-domain set, or the caller's JSONL."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UsageError

MAX_PROMPT_CHARS = 32_768

# Opening lines of books long out of copyright; each is continued by the model under test.
OPENINGS = (
    "It was the best of times, it was the worst of times,",
    "Call me Ishmael. Some years ago, never mind how long precisely,",
    "It is a truth universally acknowledged, that a single man",
    "All happy families are alike; each unhappy family is",
    "Alice was beginning to get very tired of sitting by her sister",
    "The Time Traveller (for so it will be convenient to speak of him)",
    "No one would have believed in the last years of the nineteenth century",
    "You don't know about me without you have read a book",
    "Whether I shall turn out to be the hero of my own life,",
    "In the year 1878 I took my degree of Doctor of Medicine",
    "There was no possibility of taking a walk that day.",
    "Squire Trelawney, Dr. Livesey, and the rest of these gentlemen",
    "Marley was dead: to begin with. There is no doubt whatever",
    "The sun shone, having no alternative, on the nothing new; and",
    "On an exceptionally hot evening early in July a young man",
    "As Gregor awoke one morning from uneasy dreams he found himself",
)
REQUESTS = (
    "Continue this story:",
    "Explain what happens next:",
    "Write a letter that begins:",
    "Describe the narrator of this text:",
    "Retell this for a child:",
    "Write the scene that comes after:",
    "List the facts in this line and go on:",
    "Turn this into a dialogue:",
)


def built_in_prompts() -> list[str]:
    """Every request with every opening: 128 prompts, no two alike."""
    return [f"{request} {opening}" for opening in OPENINGS for request in REQUESTS]


def read_prompts(path: Path) -> list[str]:
    """The `prompt` of every line of a JSONL file; UsageError names the first wrong line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prompts {path}: cannot be read as UTF-8 text: {error}") from None
    return [_prompt_of(line, f"prompts {path} line {n}") for n, line in enumerate(lines, 1) if line]


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f'{where}: wanted {{"prompt": "…"}}, got {line[:60]!r}') from None
    if not isinstance(prompt, str) or not 1 <= len(prompt) <= MAX_PROMPT_CHARS:
        raise UsageError(f"{where}: wanted a prompt of 1 to {MAX_PROMPT_CHARS} characters")
    return prompt


def choose(prompts: Sequence[str], n: int, *, seed: int, repeat: bool) -> list[str]:
    """N prompts in an order drawn from the seed; each at most once unless `repeat`."""
    shuffled = list(prompts)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, not a secret
    if n > len(shuffled) and not repeat:
        raise UsageError(
            f"{n} requests wanted but only {len(shuffled)} different prompts are there: "
            "a repeated prompt measures a cache; give more prompts or set repeat_prompts"
        )
    return [shuffled[i % len(shuffled)] for i in range(n)]
