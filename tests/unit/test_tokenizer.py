"""Tokenizers give the ids that vendors' libraries give, and no text that tokens do not spell."""

import json
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest, ModelLoadError
from engine.gguf import GGUFFile
from engine.synthetic import TINY, write_model
from engine.tokenizer import Tokenizer
from engine.vocabulary import Marker, MarkerSplitter
from tests.unit.gguf_files import tokenizer_file, written
from tests.unit.real_tokenizers import EVERY, real

GOLDENS = Path(__file__).parents[1] / "goldens/tokenizers"
LOSSLESS = tuple(name for name in EVERY if name != "smollm2")
NFC = ("qwen2",)


def cases(name: str) -> list[dict[str, Any]]:
    file = GOLDENS / f"{'gpt-oss' if name == 'hf-json' else name}.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["cases"]
    assert len(found) >= 60
    return found


@pytest.mark.parametrize("name", EVERY)
def test_golden_texts_encode_and_decode(name: str) -> None:
    tokenizer = real(name)
    for case in cases(name):
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        if name not in NFC:
            assert tokenizer.decode(case["ids"]) == (case["text"], 0)


def test_llama_2_encodes_and_decodes_as_sentencepiece_does(tmp_path: Path) -> None:
    """Phi-3's first 32,000 pieces are Llama 2's; nothing is stripped beside its specials."""
    reader = gguf.GGUFReader(tokenizer_file("phi-3-vocab.gguf")).fields
    named = ("tokens", "scores", "token_type")
    lists = {key: reader[f"tokenizer.ggml.{key}"].contents()[:32_000] for key in named}
    keys = lists | {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True}
    path = tmp_path / "m.gguf"
    with GGUFFile.open(
        written(path, "llama", {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    ) as file:
        tokenizer = Tokenizer.from_file(file)
    assert (tokenizer.kind, tokenizer.bos_id, tokenizer.eos_ids[0]) == ("gguf-spm", 1, 2)
    for case in cases("phi-3"):
        assert tokenizer.encode(case["text"], add_special=True) == [
            1,
            *_sentencepiece()(case["text"]),
        ]
        assert tokenizer.decode(case["ids"]) == (case["text"], 0)
    assert tokenizer.encode("<s>hi</s> x", parse_special=True)[::2][:2] == [1, 2]
    assert not {0, 1, 2} & set(tokenizer.encode("<s>hi</s><unk>"))


def test_hf_json_finds_its_specials_where_asked() -> None:
    tokenizer = real("hf-json")
    assert tokenizer.kind == "hf-json"
    assert 199_999 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.encode("<|endoftext|>", parse_special=True) == [199_999]
    assert tokenizer.eos_ids == (199_999, 200_002, 200_012)


@pytest.mark.parametrize("name", LOSSLESS)
def test_ten_thousand_random_strings_come_back(name: str) -> None:
    tokenizer, rng = real(name), random.Random(1)
    for _ in range(10_000):
        text = "".join(map(chr, (_character(rng) for _ in range(rng.randint(0, 12)))))
        text = unicodedata.normalize("NFC", text) if name in NFC else text
        assert tokenizer.decode(tokenizer.encode(text)) == (text, 0)


def test_smollm2_has_no_token_for_some_bytes_like_its_vendor() -> None:
    """Its vocabulary lacks 0x06 and others, and its vendor's tokenizer leaves them out too."""
    tokenizer = real("smollm2")
    assert tokenizer.decode(tokenizer.encode("a\x06b")) == ("ab", 0)


def _character(rng: random.Random) -> int:
    top = rng.choice((0x7F, 0x7FF, 0xFFFF, 0x10FFFF))
    while 0xD800 <= (code := rng.randint(0, top)) <= 0xDFFF:
        pass
    return code


@pytest.mark.parametrize("name", ["smollm2", "qwen2", "phi-3"])
def test_ten_thousand_random_id_sequences_stream_as_they_decode(name: str) -> None:
    tokenizer, rng = real(name), random.Random(2)
    for _ in range(10_000):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(0, 12))]
        stream = tokenizer.stream()
        text = "".join(stream.push(token_id) for token_id in ids)
        assert (text, stream.dropped_bytes) == tokenizer.decode(ids)
        whole = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="ignore")
        assert text in (whole, whole[1:])
        assert text.count("�") == whole.count("�")
        assert stream.pending_bytes <= 3


def test_characters_appear_when_their_last_byte_does() -> None:
    tokenizer = real("gpt-2")
    byte_ids = {tokenizer.token_bytes(i): i for i in range(256)}
    for character in "é世🌍�":
        stream = tokenizer.stream()
        pieces = [stream.push(byte_ids[bytes([byte])]) for byte in character.encode()]
        assert pieces == [""] * (len(pieces) - 1) + [character]
        assert (stream.pending_bytes, stream.dropped_bytes) == (0, 0)


def test_unfinished_and_invalid_bytes_are_counted_not_replaced() -> None:
    tokenizer = real("gpt-2")
    byte_ids = {tokenizer.token_bytes(i): i for i in range(256)}
    stream = tokenizer.stream()
    shown = [stream.push(byte_ids[bytes([byte])]) for byte in b"\xff\xe4\xbdA\xf0\x9f\x8c"]
    assert "".join(shown) == "A"
    assert (stream.pending_bytes, stream.dropped_bytes) == (3, 6)


@pytest.mark.parametrize("name", EVERY)
def test_no_special_token_comes_from_plain_text(name: str) -> None:
    tokenizer = real(name)
    special = {marker.token_id for marker in tokenizer.markers if marker.special}
    texts = [marker.text for marker in tokenizer.markers]
    assert texts
    for text in [*texts, " ".join(texts[:50]), "".join(texts[:50])]:
        assert not special & set(tokenizer.encode(text))
    for marker in tokenizer.markers[:50]:
        assert tokenizer.encode(marker.text, parse_special=True) == [marker.token_id]


def test_phi_3_strips_after_specials_and_adds_bos() -> None:
    tokenizer = real("phi-3")
    text = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    assert tokenizer.encode(text, add_special=True, parse_special=True) == [
        1, 32010, 15043, 32007, 32001,
    ]  # fmt: skip
    assert tokenizer.eos_ids[0] == 32000
    assert 32007 in tokenizer.eos_ids


def test_llama_3_adds_bos_and_ends_at_its_turn() -> None:
    tokenizer = real("llama-3")
    turn = "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    ids = [128_000, 128_006, 882, 128_007, 271, 9906, 128_009]
    assert tokenizer.encode(turn, add_special=True, parse_special=True) == ids
    assert {128_001, 128_009} <= set(tokenizer.eos_ids)


def test_a_continued_sentencepiece_text_keeps_its_space() -> None:
    tokenizer = real("phi-3")
    assert tokenizer.decode([15043]) == ("Hello", 0)
    assert tokenizer.decode([15043], continues=True) == (" Hello", 0)


def test_half_surrogates_and_unknown_ids_are_refused() -> None:
    tokenizer = real("gpt-2")
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode("a\ud800")
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(InvalidRequest, match="0…50256 wanted"):
            tokenizer.decode([token_id])


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="abtheé ▁\n🌍", max_size=40))
def test_sentencepiece_agrees_on_repeats(text: str) -> None:
    assert real("phi-3").encode(text) == _sentencepiece()(text)


@cache
def _sentencepiece() -> Callable[[str], list[int]]:
    from tests.goldens.make_tokenizer_goldens import phi_3

    encode: Callable[[str], list[int]] = phi_3(tokenizer_file("phi-3-vocab.gguf")).encode
    return encode


def test_the_longest_marker_wins_and_white_space_is_stripped() -> None:
    splitter = MarkerSplitter(
        [
            Marker("<a>", 1, strip_left=True, strip_right=True),
            Marker("<a><b>", 2),
            Marker("  ", 3, special=False),
        ]
    )
    assert list(splitter.split("x <a> y<a><b>", special=True)) == ["x", 1, "y", 2]
    assert list(splitter.split("x <a>  y", special=False)) == ["x <a>", 3, "y"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "tokenizer.ggml.model"), ({"model": "bert"}, "got 'bert'"),
    ({"pre": "deepseek"}, "tokenizer.ggml.pre"), ({"pre": None}, "tokenizer.ggml.pre"),
    ({"tokens": None}, "tokenizer.ggml.tokens"), ({"tokens": [1, 2]}, "tokenizer.ggml.tokens"),
    ({"merges": ["a z"]}, "merge 0 'a z' names unknown tokens"),
    ({"merges": ["ab"]}, "merge 0 'ab' names unknown tokens"),
    ({"token_type": [1]}, "3 numbers, one a token, wanted"),
    ({"token_type": [1, 1, 9]}, "token 2: 1…6 wanted, got 9"),
    ({"eos_token_id": 3}, "tokenizer.ggml.eos_token_id"), ({"bos_token_id": 99}, "bos_token_id"),
    ({"add_bos_token": 1}, "add_bos_token"), ({"model": "llama"}, "tokenizer.ggml.scores"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "wanted"), WRONG)
def test_wrong_vocabularies_are_refused_by_key(
    change: dict[str, Any], wanted: str, tmp_path: Path
) -> None:
    good: dict[str, Any] = {"model": "gpt2", "pre": "qwen2", "tokens": ["a", "b", "ab"],
                            "token_type": [1, 1, 1], "merges": ["a b"]}  # fmt: skip
    keys = {f"tokenizer.ggml.{key}": value for key, value in (good | change).items()}
    path = written(tmp_path / "m.gguf", "llama", keys)
    with GGUFFile.open(path) as file, pytest.raises(ModelLoadError) as caught:
        Tokenizer.from_file(file)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "types", "ids"),
    [
        (["a", "b", "ab", "b", "ab"], [1, 1, 1, 1, 1], [2, 1]),
        (["ab", "a", "b", "ab", "b"], [3, 1, 1, 1, 1], [3, 2]),
        (["ab", "b", "a", "b", "ab"], [4, 5, 1, 1, 1], [0, 3]),
    ],
)
def test_of_normal_tokens_with_one_text_the_first_counts(
    tokens: list[str], types: list[int], ids: list[int], tmp_path: Path
) -> None:
    vocabulary = {"tokens": tokens, "token_type": types, "merges": ["a b"]}
    keys = {"model": "gpt2", "pre": "qwen2"} | vocabulary
    path = written(
        tmp_path / "m.gguf", "llama", {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    )
    with GGUFFile.open(path) as file:
        assert Tokenizer.from_file(file).encode("abb") == ids


@pytest.mark.parametrize("name", TINY)
def test_generated_vocabularies_are_lossless(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", name)
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        tokenizer = Tokenizer.from_file(file)
    for case in cases("gpt-2"):
        text = unicodedata.normalize("NFC", case["text"]) if name == "tiny-qwen2" else case["text"]
        assert tokenizer.decode(tokenizer.encode(text)) == (text, 0)
