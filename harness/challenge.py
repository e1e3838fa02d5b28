"""Fresh challenges from the run's nonce: prompts, code words, seeds and orders drawn per run.

Everything is drawn from HMAC-SHA256(run nonce, check id ‖ attempt), so a reviewer who knows the
nonce can draw it again, and an engine that does not cannot have prepared for it.
"""

import hashlib
import hmac
import random
from dataclasses import dataclass

CODE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
CODE_LENGTH = 8

_WHO = (
    "The old sailor", "A young engineer", "My grandmother", "The night watchman", "A quiet teacher",
    "The baker's son", "An astronomer", "The last librarian", "A travelling doctor", "Two brothers",
    "The lighthouse keeper", "A retired judge", "The piano tuner", "A mountain guide", "The clerk",
    "Our neighbour", "A stubborn farmer", "The glass blower", "A tired nurse", "The map maker",
)  # fmt: skip
_DID = (
    "found", "carried", "painted", "repaired", "lost", "remembered", "sold", "measured", "drew",
    "built", "kept", "described", "opened", "borrowed", "hid", "followed", "counted", "traded",
)  # fmt: skip
_WHAT = (
    "a brass clock", "the wooden bridge", "an unread letter", "three blue lanterns", "a silver key",
    "the broken telescope", "a basket of apples", "an old atlas", "the copper kettle", "a red boat",
    "a box of photographs", "the garden gate", "a heavy stone", "an empty notebook", "the last map",
    "a pair of boots", "the weather station", "a small engine", "the church bell", "a paper crane",
)  # fmt: skip
_WHERE = (
    "by the river", "in the attic", "near the harbour", "behind the school", "on a winter morning",
    "after the storm", "at the edge of the forest", "in a crowded market", "under the stairs",
    "before sunrise", "on the way to the station", "in the middle of the square", "at midnight",
    "during the long summer", "beside the railway", "on the northern coast", "in an empty theatre",
)  # fmt: skip
_THEN = (
    "and nobody knew why.", "and then the rain began.", "because it was the only way.", "so",
    "while the others slept.", "and wrote about it later:", "which surprised everyone.", "but",
    "as if it had always been so.", "and told the story twice.", "until", "and the next day",
)  # fmt: skip
_ASKS = (
    "What happened next?", "Write the next two sentences.", "Explain the reason in simple words.",
    "Give this story a title and a first line.", "Who else was there? Describe one person.",
    "Tell it again as a short poem.", "What would you have done?", "List three details.",
)  # fmt: skip


@dataclass(frozen=True)
class Challenge:
    """Draws for one check and attempt; every draw with the same arguments is the same."""

    nonce: str
    check: str
    attempt: int = 1

    @property
    def digest(self) -> bytes:
        """HMAC-SHA256 of check and attempt under the run's nonce."""
        message = f"{self.check}‖{self.attempt}".encode()
        return hmac.new(self.nonce.encode(), message, hashlib.sha256).digest()

    @property
    def code_word(self) -> str:
        """Eight characters that nobody can have prepared."""
        number = int.from_bytes(self.digest, "big")
        letters = []
        for _ in range(CODE_LENGTH):
            number, index = divmod(number, len(CODE_LETTERS))
            letters.append(CODE_LETTERS[index])
        return "".join(letters)

    def draw(self) -> random.Random:
        """A generator of this challenge's own."""
        return random.Random(self.digest)  # noqa: S311 - reproducible by design


def opening(draw: random.Random) -> str:
    """The beginning of a story, made of drawn parts: ordinary text to go on from."""
    parts = (_WHO, _DID, _WHAT, _WHERE)
    return f"{' '.join(draw.choice(words) for words in parts)}, {draw.choice(_THEN)}"


def retold(draw: random.Random, text: str) -> str:
    """The same story of somebody else, where it is a story of ours; else one put before it."""
    for who in _WHO:
        if text.startswith(who):
            return draw.choice([other for other in _WHO if other != who]) + text[len(who) :]
    return f"{opening(draw)} {text}"


def code(draw: random.Random) -> str:
    """A word of eight letters and digits."""
    return "".join(draw.choices(CODE_LETTERS, k=CODE_LENGTH))


def paragraph(draw: random.Random, sentences: int) -> str:
    """Several openings one after the other: an ordinary longer prompt."""
    return " ".join(opening(draw) for _ in range(sentences))


def conversation(draw: random.Random) -> list[dict[str, str]]:
    """A chat request of ordinary wording."""
    return [{"role": "user", "content": f"{opening(draw)} {draw.choice(_ASKS)}"}]
