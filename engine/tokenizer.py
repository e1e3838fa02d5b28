"""Text to token ids and back, as the model's own tokenizer does it.

The merging is the `tokenizers` library's; what it merges by comes from the GGUF file (`gguf-bpe`,
`gguf-spm`) or from a tokenizer.json in or beside it (`hf-json`). Special tokens are found by us,
and only where the caller asks, so that no user text can spell one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Merger
from tokenizers import models

from engine import hf_json, spm
from engine.errors import InvalidRequest, ModelLoadError
from engine.gguf import GGUFFile
from engine.metadata import StringArray
from engine.pretokenizers import PRETOKENIZERS
from engine.stream_decoder import StreamDecoder
from engine.vocabulary import Marker, MarkerSplitter, TokenType, Vocabulary, byte_of_piece

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts come one at a time

MAX_TOKENS = 1 << 20

_END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|end|>", "<|return|>", "<|call|>", "<|eot_id|>",
    "<|end_of_text|>", "</s>",
)  # fmt: skip
_NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class _Parts:
    """What a tokenizer is made of, whatever file it came from."""

    kind: str
    vocabulary: Vocabulary
    merger: Any
    markers: tuple[Marker, ...]
    adds_bos: bool


class Tokenizer:
    """One model's tokenizer. `kind` is gguf-bpe, gguf-spm or hf-json; ids run to `vocab_size`."""

    def __init__(self, parts: _Parts, ids: "_SpecialIds") -> None:
        self.kind = parts.kind
        self.vocab_size = len(parts.vocabulary)
        self.vocabulary = parts.vocabulary
        self.bos_id, self.eos_ids = ids.bos_id, ids.eos_ids
        self.add_bos, self.add_eos = ids.add_bos, ids.add_eos
        self.markers = parts.markers
        self._merger = parts.merger
        self._splitter = MarkerSplitter(parts.markers)
        self._ids_of_markers = {marker.text: marker.token_id for marker in parts.markers}

    @classmethod
    def from_file(cls, file: GGUFFile) -> "Tokenizer":
        """The file's tokenizer; ModelLoadError names the key that is missing or wrong."""
        parts = _parts(file)
        return cls(parts, _special_ids(file, parts))

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS and EOS where the model wants them; `parse_special` takes text such
        as <|im_end|> for the token of that name, which is safe for trusted text only.
        """
        pieces = self._splitter.split(_encodable(text), special=parse_special)
        ids = self._ids_of(pieces)
        if add_special:
            ids = self._with_ends(ids)
        return ids

    def encode_guarded(self, text: str, guard: str) -> list[int]:
        """Token ids of `text` with its special tokens, except where a `guard` character breaks one.

        The guard characters themselves are no part of the text.
        """
        pieces = self._splitter.split(_encodable(text), special=True)
        return self._ids_of(p if isinstance(p, int) else p.replace(guard, "") for p in pieces)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text; none for control tokens."""
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(
                "ids", f"token ids in 0…{self.vocab_size - 1} wanted, got {token_id}"
            )
        return self.vocabulary.bytes_of(token_id)

    def has_leading_mark(self, token_id: int) -> bool:
        """True where decoding a text that starts with this token drops its leading space."""
        return not self.vocabulary.byte_level and self.vocabulary.starts_with_mark(token_id)

    def stream(self, *, continues: bool = False) -> StreamDecoder:
        """A decoder for one text; see StreamDecoder for `continues`."""
        return StreamDecoder(self, continues=continues)

    def decode(self, ids: Sequence[int], *, continues: bool = False) -> tuple[str, int]:
        """(text, dropped_bytes): the whole characters of `ids`, and the bytes that make none."""
        decoder = self.stream(continues=continues)
        text = "".join(decoder.push(token_id) for token_id in ids)
        return text, decoder.dropped_bytes

    def id_of(self, special: str) -> int | None:
        """The id of a special or user-defined token by its text."""
        return self._ids_of_markers.get(special)

    @property
    def special_first_characters(self) -> frozenset[str]:
        """The characters that a special token's text can start with."""
        return self._splitter.first_characters

    def _ids_of(self, pieces: Any) -> list[int]:
        """Ids of texts and ids; as batches of one, since only batches let go of the GIL."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids += self._merger.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        return ids

    def _with_ends(self, ids: list[int]) -> list[int]:
        first = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        return [*first, *ids, *(self.eos_ids[:1] if self.add_eos else ())]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            "prompt", f"half of a surrogate pair at character {exc.start}; send whole characters"
        ) from exc
    return text


def _error(file: GGUFFile, key: str, message: str) -> ModelLoadError:
    return ModelLoadError(f"{file.path.name}: metadata key {key!r}: {message}")


def _parts(file: GGUFFile) -> _Parts:
    embedded = file.metadata.get("tokenizer.huggingface.json")
    model = file.metadata.get("tokenizer.ggml.model")
    if isinstance(embedded, str):
        return _json_parts(embedded, f"{file.path.name}: metadata key 'tokenizer.huggingface.json'")
    if model == "gpt2":
        return _bpe_parts(file)
    if model == "llama":
        return _spm_parts(file)
    beside = file.path.with_name("tokenizer.json")
    if beside.is_file():
        return _json_parts(hf_json.read(beside), beside.name)
    raise _error(
        file,
        "tokenizer.ggml.model",
        f"gpt2 or llama wanted (or a tokenizer.json beside the file), got {str(model)[:80]!r}",
    )


def _json_parts(text: str, place: str) -> _Parts:
    vocabulary, merger, markers = hf_json.load(text, place)
    return _Parts("hf-json", vocabulary, merger, markers, adds_bos=False)


def _bpe_parts(file: GGUFFile) -> _Parts:
    vocabulary = _vocabulary(file, byte_level=True)
    name = file.metadata.get("tokenizer.ggml.pre")
    name = "gpt-2" if name is None and _architecture(file) == "gpt2" else name
    pretokenizer = PRETOKENIZERS.get(name) if isinstance(name, str) else None
    if pretokenizer is None:
        raise _error(
            file,
            "tokenizer.ggml.pre",
            f"one of {', '.join(PRETOKENIZERS)} wanted, got {str(name)[:80]!r}",
        )
    ids = _normal_ids(vocabulary)
    merger = _merger(file, lambda: _bpe_model(file, ids, pretokenizer.ignore_merges))
    merger.pre_tokenizer = pretokenizer.build()
    if pretokenizer.nfc:
        merger.normalizer = pretokenizer.normalizer()
    return _Parts("gguf-bpe", vocabulary, merger, _markers(file, vocabulary), adds_bos=False)


def _normal_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Normal tokens by text, from the last to the first: of two with one text the first counts."""
    texts, is_normal = reversed(vocabulary.texts), vocabulary.are(TokenType.NORMAL)[::-1].tolist()
    ids = range(len(vocabulary) - 1, -1, -1)
    found: dict[Any, int] = {None: 0}  # only with a key that is no string does it keep the hashes
    found.update(zip(compress(texts, is_normal), compress(ids, is_normal), strict=True))
    del found[None]
    return found


def _bpe_model(file: GGUFFile, ids: dict[str, int], ignore_merges: bool) -> Any:
    merges = _strings(file, "tokenizer.ggml.merges")
    pairs: list[Any] = list(merges.halves())
    try:
        return models.BPE(vocab=ids, merges=pairs, ignore_merges=ignore_merges)
    except Exception:
        _require_known(file, merges, ids)
        raise


def _require_known(file: GGUFFile, merges: StringArray, ids: dict[str, int]) -> None:
    """Name the first merge that is no pair of tokens which together are a token."""
    for index, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not space or left not in ids or right not in ids or left + right not in ids:
            raise _error(
                file,
                "tokenizer.ggml.merges",
                f"merge {index} {merge[:80]!r} names unknown tokens",
            )


def _spm_parts(file: GGUFFile) -> _Parts:
    vocabulary = _vocabulary(file, byte_level=False)
    scores = _numbers(file, "tokenizer.ggml.scores", len(vocabulary), "f")
    if not np.isfinite(scores).all():
        raise _error(file, "tokenizer.ggml.scores", "finite numbers wanted")
    merger = _merger(file, lambda: spm.model_of(vocabulary, scores.tolist()))
    prefix = _flag(file, "tokenizer.ggml.add_space_prefix", default=True)
    merger.normalizer = spm.normalizer(prefix_space=prefix)
    return _Parts("gguf-spm", vocabulary, merger, _markers(file, vocabulary), adds_bos=True)


def _merger(file: GGUFFile, build: Any) -> Any:
    try:
        return Merger(build())
    except ModelLoadError:
        raise
    except Exception as exc:
        raise _error(
            file, "tokenizer.ggml.tokens", f"no tokenizer can be made: {str(exc)[:200]}"
        ) from exc


def _vocabulary(file: GGUFFile, *, byte_level: bool) -> Vocabulary:
    texts = list(_strings(file, "tokenizer.ggml.tokens"))
    if not 1 <= len(texts) <= MAX_TOKENS:
        raise _error(
            file, "tokenizer.ggml.tokens", f"1…{MAX_TOKENS} tokens wanted, got {len(texts)}"
        )
    types = np.full(len(texts), TokenType.NORMAL, np.uint8)
    if byte_level is False or "tokenizer.ggml.token_type" in file.metadata:
        types = _numbers(file, "tokenizer.ggml.token_type", len(texts), "iu")
    _check_types(file, types)
    vocabulary = Vocabulary(texts, types.astype(np.uint8).tobytes(), byte_level)
    if not byte_level:
        _check_byte_pieces(file, vocabulary)
    return vocabulary


def _check_types(file: GGUFFile, types: "np.ndarray[Any, Any]") -> None:
    unknown = (types < min(TokenType)) | (types > max(TokenType))
    if unknown.any():
        token_id = int(unknown.argmax())
        raise _error(
            file,
            "tokenizer.ggml.token_type",
            f"token {token_id}: 1…6 wanted, got {types[token_id]}",
        )


def _check_byte_pieces(file: GGUFFile, vocabulary: Vocabulary) -> None:
    for token_id in vocabulary.ids_of(TokenType.BYTE):
        try:
            byte_of_piece(vocabulary.texts[token_id])
        except ValueError as exc:
            raise _error(file, "tokenizer.ggml.tokens", f"token {token_id}: {exc}") from exc


def _markers(file: GGUFFile, vocabulary: Vocabulary) -> tuple[Marker, ...]:
    """Control tokens, and user-defined ones; those in brackets count as special like control."""
    strips = _architecture(file) == "phi3"
    markers = []
    for token_id in vocabulary.ids_of(TokenType.CONTROL, TokenType.USER_DEFINED):
        text = vocabulary.texts[token_id]
        bracketed = text[:1] + text[-1:] in ("<>", "[]")
        special = vocabulary.types[token_id] == TokenType.CONTROL or bracketed
        strip_right = strips and text not in _NOT_STRIPPED
        markers.append(Marker(text, token_id, special, strip_right=strip_right))
    return tuple(markers)


@dataclass(frozen=True)
class _SpecialIds:
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool


def _special_ids(file: GGUFFile, parts: _Parts) -> _SpecialIds:
    size = len(parts.vocabulary)
    named = [_id(file, f"tokenizer.ggml.{name}_token_id", size) for name in ("eos", "eot", "eom")]
    of_text = {marker.text: marker.token_id for marker in parts.markers if marker.special}
    ends = [token for token in _END_TOKENS if token in of_text]
    if "<|channel|>" in of_text:
        ends = [token for token in ends if token != "<|end|>"]  # noqa: S105
    found = [token_id for token_id in named if token_id is not None]
    eos_ids = tuple(dict.fromkeys([*found, *(of_text[token] for token in ends)]))
    return _SpecialIds(
        _id(file, "tokenizer.ggml.bos_token_id", size),
        eos_ids,
        _flag(file, "tokenizer.ggml.add_bos_token", default=parts.adds_bos),
        _flag(file, "tokenizer.ggml.add_eos_token", default=False),
    )


def _architecture(file: GGUFFile) -> object:
    return file.metadata.get("general.architecture")


def _strings(file: GGUFFile, key: str) -> StringArray:
    value = file.metadata.get(key)
    if not isinstance(value, StringArray):
        got = "nothing (the key is missing)" if value is None else type(value).__name__
        raise _error(file, key, f"an array of strings wanted, got {got}")
    return value


def _numbers(file: GGUFFile, key: str, count: int, kinds: str) -> "np.ndarray[Any, Any]":
    value = file.metadata.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or len(value) != count:
        got = f"{len(value)} of {value.dtype}" if isinstance(value, np.ndarray) else repr(value)
        raise _error(file, key, f"{count} numbers, one a token, wanted, got {got[:80]}")
    return value


def _flag(file: GGUFFile, key: str, *, default: bool) -> bool:
    value = file.metadata.get(key, default)
    if not isinstance(value, bool):
        raise _error(file, key, f"true or false wanted, got {str(value)[:80]}")
    return value


def _id(file: GGUFFile, key: str, size: int) -> int | None:
    value = file.metadata.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < size):
        raise _error(file, key, f"a token id in 0…{size - 1} wanted, got {str(value)[:80]}")
    return value
