"""Tokens in, text out: only whole characters, and never one that the tokens do not spell."""

import codecs
from typing import Protocol


class _Spells(Protocol):
    def token_bytes(self, token_id: int) -> bytes: ...
    def has_leading_mark(self, token_id: int) -> bool: ...


class StreamDecoder:
    """Decodes one text token by token.

    Bytes that can belong to no character are dropped; bytes of a character that is not complete
    yet are held back. With `continues` the text goes on from an earlier one, so that the space
    before SentencePiece's first word is kept.
    """

    def __init__(self, tokenizer: _Spells, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._at_start = not continues
        self._bytes_in = self._bytes_out = 0

    def push(self, token_id: int) -> str:
        """The characters that this token completes, often one word, sometimes ""."""
        content = self._tokenizer.token_bytes(token_id)
        if content and self._at_start:
            self._at_start = False
            content = content[1:] if self._tokenizer.has_leading_mark(token_id) else content
        text = self._decoder.decode(content)
        self._bytes_in += len(content)
        self._bytes_out += len(text.encode())
        return text

    @property
    def pending_bytes(self) -> int:
        """Bytes held back because their character is not complete yet."""
        return len(self._decoder.getstate()[0])

    @property
    def dropped_bytes(self) -> int:
        """Bytes that are in no character so far: invalid ones, and those pending."""
        return self._bytes_in - self._bytes_out
