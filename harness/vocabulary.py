"""Token ids by their spelling, from a tokenizer file that a reviewer names (--tokenizer)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.judges.completion import Stream


@dataclass(frozen=True)
class Vocabulary:
    """The spellings of a model's tokens; one that two tokens share, or that is no text, is out."""

    ids: Mapping[str, int]

    @classmethod
    def from_file(cls, path: Path) -> "Vocabulary":
        """Read a `tokenizer.json` (Hugging Face); UsageError where it is none."""
        try:
            table = json.loads(path.read_bytes())
            pieces = _pieces(table["model"]["vocab"])
            added = {str(row["content"]): int(row["id"]) for row in table.get("added_tokens", ())}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--tokenizer {path.name}: wanted a Hugging Face tokenizer.json, got {error!r:.120}"
            ) from None
        bytelevel = "ByteLevel" in json.dumps([table.get("decoder"), table.get("pre_tokenizer")])
        spell = _byte_level if bytelevel else _metaspace
        named = [(spell(piece), id_) for piece, id_ in pieces.items() if piece not in added]
        return cls(_unambiguous([*named, *added.items()]))

    def of(self, streams: Iterable[Stream]) -> dict[str, int]:
        """The ids of the tokens that these streams name, by their spelling."""
        named = {str(token.raw["id"]) for stream in streams for token in stream.tokens}
        return {piece: self.ids[piece] for piece in sorted(named) if piece in self.ids}


def _pieces(vocab: Any) -> dict[str, int]:
    """Pieces by text: a table of ids, or a list of (piece, score) in the order of ids."""
    rows = vocab.items() if isinstance(vocab, dict) else ((p, i) for i, (p, _) in enumerate(vocab))
    return {str(piece): int(id_) for piece, id_ in rows}


def _unambiguous(named: Iterable[tuple[str | None, int]]) -> dict[str, int]:
    found: dict[str, set[int]] = {}
    for piece, id_ in named:
        if piece is not None:
            found.setdefault(piece, set()).add(id_)
    return {piece: ids.pop() for piece, ids in found.items() if len(ids) == 1}


def _metaspace(piece: str) -> str | None:
    return piece.replace("\u2581", " ")


def _byte_level(piece: str) -> str | None:
    table = _bytes_by_letter()
    try:
        return bytes(table[letter] for letter in piece).decode()
    except (KeyError, UnicodeDecodeError):
        return None


@cache
def _bytes_by_letter() -> dict[str, int]:
    """GPT-2's alphabet: each byte as a printable letter."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + number): byte for number, byte in enumerate(others)}
