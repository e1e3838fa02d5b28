"""Challenges: drawn from the nonce alone, each one's own, and ordinary to look at."""

import random

from hypothesis import given
from hypothesis import strategies as st

from harness.challenge import (
    CODE_LENGTH,
    CODE_LETTERS,
    Challenge,
    conversation,
    opening,
    paragraph,
)
from harness.saboteurs.moments import KNOWN_PROMPT_WORDS

nonces = st.text(min_size=1, max_size=40)


@given(nonces)
def test_the_same_nonce_draws_the_same(nonce: str) -> None:
    one, again = Challenge(nonce, "C"), Challenge(nonce, "C")
    assert one.code_word == again.code_word
    assert opening(one.draw()) == opening(again.draw())


def test_nonce_check_and_attempt_each_change_the_draw() -> None:
    words = {
        Challenge(nonce, check, attempt).code_word
        for nonce in ("a", "b")
        for check in ("C", "D")
        for attempt in (1, 2)
    }
    assert len(words) == 8


@given(nonces)
def test_a_code_word_is_eight_of_its_letters(nonce: str) -> None:
    word = Challenge(nonce, "C").code_word
    assert len(word) == CODE_LENGTH
    assert set(word) <= set(CODE_LETTERS)


def test_openings_hardly_repeat() -> None:
    draw = random.Random(1)
    assert len({opening(draw) for _ in range(2000)}) > 1900


def test_prompts_name_no_probe() -> None:
    draw = random.Random(2)
    texts = [paragraph(draw, 5) + conversation(draw)[0]["content"] for _ in range(200)]
    assert not any(word in text for text in texts for word in KNOWN_PROMPT_WORDS)
