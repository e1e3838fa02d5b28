"""SentencePiece's BPE (`tokenizer.ggml.model` = llama) as a byte-pair model with merge ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import models, normalizers

from engine.vocabulary import SPACE_MARK, TokenType, Vocabulary

MAX_PIECE_CHARACTERS = 1024


def merges_of(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins into a piece, the best-scored first.

    SentencePiece joins the adjacent pair whose result scores highest; a list of pairs in the order
    of those scores makes a rank-based model do the same.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, piece_id in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                ranked.append((-scores[piece_id], pieces[left], pieces[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def model_of(vocabulary: Vocabulary, scores: Sequence[float]) -> Any:
    """The `tokenizers` model: normal pieces merge, everything else falls back to byte pieces."""
    normal: dict[str, int] = {}
    fallback: dict[str, int] = {}
    for token_id, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.types, strict=True)):
        if kind == TokenType.NORMAL and 0 < len(text) <= MAX_PIECE_CHARACTERS:
            normal.setdefault(text, token_id)
        elif kind == TokenType.BYTE:
            fallback.setdefault(text, token_id)
    return models.BPE(
        vocab=fallback | normal,
        merges=merges_of(normal, scores),
        byte_fallback=True,
    )


def normalizer(*, prefix_space: bool) -> Any:
    """Spaces become marks; a text starts with one."""
    steps: list[Any] = [normalizers.Prepend(SPACE_MARK)] if prefix_space else []
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE_MARK)])
