"""A tokenizer.json: byte-pair vocabularies as the `tokenizers` library stores them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Merger
from tokenizers import models

from engine.errors import ModelLoadError
from engine.vocabulary import Marker, TokenType, Vocabulary

MAX_BYTES = 64 << 20
MAX_TOKENS = 1 << 20

Loaded = tuple[Vocabulary, Any, tuple[Marker, ...]]


def read(path: Path) -> str:
    """The text of the file, at most MAX_BYTES."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ModelLoadError(f"{path.name}: more than {MAX_BYTES} bytes")
        return content.decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelLoadError(f"{path.name}: {exc}") from exc


def load(text: str, place: str) -> Loaded:
    """(vocabulary, merger, markers) of a tokenizer.json; ModelLoadError starts with `place`."""
    try:
        content = json.loads(text)
        return _load(content)
    except ModelLoadError as exc:
        raise ModelLoadError(f"{place}: {exc}") from exc
    except Exception as exc:
        kind = type(exc).__name__
        raise ModelLoadError(
            f"{place}: no tokenizer can be made: {kind}: {str(exc)[:200]}"
        ) from exc


def _load(content: Any) -> Loaded:
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise ModelLoadError(f"a BPE model wanted, got {str(model['type'])[:80]!r}")
    added = content.get("added_tokens") or []
    markers = tuple(_marker(token) for token in added)
    marked = {marker.text for marker in markers}
    ids = {text: token_id for text, token_id in model["vocab"].items() if text not in marked}
    merger = _shell(content)
    merger.model = _model(model, ids)
    decoder = json.dumps(content.get("decoder"))
    byte_level = "ByteLevel" in decoder
    return _vocabulary(ids, markers, byte_level), merger, markers


def _shell(content: dict[str, Any]) -> Any:
    """The normalizer and pre-tokenizer around an empty model: the long lists are parsed once."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    keep = ("version", "normalizer", "pre_tokenizer", "decoder")
    outer = {key: content.get(key) for key in keep}
    return Merger.from_str(json.dumps(outer | {"added_tokens": [], "model": empty}))


def _model(model: dict[str, Any], ids: dict[str, int]) -> Any:
    merges = [_pair(merge) for merge in model["merges"]]
    names = ("continuing_subword_prefix", "end_of_word_suffix")
    if model.get("dropout") or any(model.get(name) for name in names):
        raise ModelLoadError("dropout, subword prefixes and word suffixes are not supported")
    options = {name: bool(model.get(name)) for name in ("byte_fallback", "ignore_merges")}
    return models.BPE(vocab=ids, merges=merges, **options)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _marker(token: dict[str, Any]) -> Marker:
    text, token_id = token["content"], token["id"]
    if not isinstance(text, str) or type(token_id) is not int or not text:
        raise ModelLoadError(f"added token {token!r:.80}: a text and an id wanted")
    bracketed = text[:1] + text[-1:] in ("<>", "[]")
    return Marker(
        text,
        token_id,
        bool(token.get("special")) or bracketed,
        bool(token.get("lstrip")),
        bool(token.get("rstrip")),
    )


def _vocabulary(ids: dict[str, int], markers: tuple[Marker, ...], byte_level: bool) -> Vocabulary:
    size = 1 + max([*ids.values(), *(marker.token_id for marker in markers)])
    if size > MAX_TOKENS:
        raise ModelLoadError(f"token ids under {MAX_TOKENS} wanted, got {size - 1}")
    texts = [""] * size
    types = bytearray([TokenType.UNUSED]) * size
    for text, token_id in ids.items():
        piece = not byte_level and len(text) == 6 and text.startswith("<0x")
        texts[token_id], types[token_id] = text, TokenType.BYTE if piece else TokenType.NORMAL
    for marker in markers:
        special = TokenType.CONTROL if marker.special else TokenType.USER_DEFINED
        texts[marker.token_id], types[marker.token_id] = marker.text, special
    return Vocabulary(texts, bytes(types), byte_level)
