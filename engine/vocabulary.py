"""A tokenizer's vocabulary: the text, kind and bytes of every token, and its special tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class TokenType(IntEnum):
    """What a token is, numbered as in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPACE_MARK = "▁"
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_SHIFTED = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

BYTE_OF_CHARACTER: dict[str, int] = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + index): byte for index, byte in enumerate(_SHIFTED)
}
"""GPT-2's map of printable characters to the bytes they stand for."""


@dataclass(frozen=True)
class Marker:
    """A token that is found in text as a whole, not merged.

    `special` ones are found only where the caller asks for special tokens; `strip_left` and
    `strip_right` swallow the white space beside them.
    """

    text: str
    token_id: int
    special: bool = True
    strip_left: bool = False
    strip_right: bool = False


class MarkerSplitter:
    """Cuts text at markers, the longest first: yields token ids and the text between them."""

    def __init__(self, markers: Sequence[Marker]) -> None:
        self._markers = {marker.text: marker for marker in markers if len(marker.text) > 1}
        self._all = _pattern(list(self._markers))
        self._plain = _pattern([m.text for m in self._markers.values() if not m.special])

    def split(self, text: str, *, special: bool) -> Iterator[int | str]:
        """The pieces of `text` in order; special tokens stay text unless `special`."""
        pattern = self._all if special else self._plain
        start, strip = 0, False
        for match in pattern.finditer(text) if pattern else ():
            marker = self._markers[match.group()]
            between = _between(text[start : match.start()], strip, marker.strip_left)
            if between:
                yield between
            yield marker.token_id
            start, strip = match.end(), marker.strip_right
        rest = _between(text[start:], strip, False)
        if rest:
            yield rest

    @property
    def first_characters(self) -> frozenset[str]:
        """The characters that a special token can start with."""
        return frozenset(m.text[0] for m in self._markers.values() if m.special)


def _between(text: str, strip_left: bool, strip_right: bool) -> str:
    text = text.lstrip() if strip_left else text
    return text.rstrip() if strip_right else text


def _pattern(texts: Sequence[str]) -> "re.Pattern[str] | None":
    if not texts:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))


@dataclass(frozen=True)
class Vocabulary:
    """Every token by id; `byte_level` tells GPT-2's byte characters from SentencePiece's marks.

    `types` holds a TokenType a token.
    """

    texts: Sequence[str]
    types: bytes
    byte_level: bool

    def __len__(self) -> int:
        return len(self.texts)

    def ids_of(self, *kinds: TokenType) -> list[int]:
        """The tokens of these kinds, ascending."""
        ids: list[int] = np.flatnonzero(self.are(*kinds)).tolist()
        return ids

    def are(self, *kinds: TokenType) -> NDArray[np.bool_]:
        """Which tokens are of these kinds."""
        types = np.frombuffer(self.types, np.uint8)
        found: NDArray[np.bool_] = np.any([types == kind for kind in kinds], axis=0)
        return found

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; control tokens add none."""
        text, kind = self.texts[token_id], self.types[token_id]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED):
            return b""
        if kind == TokenType.USER_DEFINED:
            return text.encode()
        if self.byte_level:
            return _byte_level(text)
        if kind == TokenType.BYTE:
            return bytes([byte_of_piece(text)])
        return text.replace(SPACE_MARK, " ").encode()

    def starts_with_mark(self, token_id: int) -> bool:
        """True where the token begins with SentencePiece's space mark."""
        return self.types[token_id] == TokenType.NORMAL and self.texts[token_id][:1] == SPACE_MARK


def _byte_level(text: str) -> bytes:
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in text])
    except KeyError:
        return text.encode()


def byte_of_piece(text: str) -> int:
    """The byte of a piece such as `<0x0A>`; ValueError where it is not one."""
    if not re.fullmatch("<0x[0-9A-F]{2}>", text):
        raise ValueError(f"a byte piece such as <0x0A> wanted, got {text!r}")
    return int(text[3:5], 16)
