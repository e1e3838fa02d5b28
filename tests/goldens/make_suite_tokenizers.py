"""Makes suites/goldens/tokenizers/*.json: what libraries that are not ours make of each text.

    python -m tests.goldens.make_suite_tokenizers TOKENIZER_DATA suites/goldens/tokenizers

For the default model, for the reference models (the vectors of tests/goldens/tokenizers, with the
digest of the registered file), and for the vocabularies of the generated models: of these the
pieces are few, but pre-tokenizers, normalization, merging and byte fallback are their families'
own. What TOKENIZER_DATA is says tests/goldens/make_tokenizer_goldens.py.
"""

import hashlib
import json
import lzma
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

from engine.synthetic import write_model
from harness.models import registry
from tests.goldens.make_tokenizer_goldens import DEFAULT_MODEL, byte_level, phi_3, qwen2
from tests.goldens.tokenizer_texts import TEXTS

LONGEST_TINY = 2000
VECTORS = Path(__file__).parent / "tokenizers"
REFERENCE_MODELS = {
    "qwen2.5-0.5b-instruct": "qwen2",
    "phi-3-mini-4k-instruct": "phi-3",
    "gpt-oss-20b": "gpt-oss",
}


def _smollm2(path: Path) -> Tokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return byte_level(path, [digits], own_words=True)


def _gpt_oss(path: Path, data: Path) -> Tokenizer:
    published = lzma.decompress((data / "gpt-oss-tokenizer.json.xz").read_bytes()).decode()
    tokenizer = byte_level(path, [], own_words=True)
    tokenizer.pre_tokenizer = Tokenizer.from_str(published).pre_tokenizer
    return tokenizer


def _cases(tokenizer: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Text, ids, and what the ids decode to where that is another text."""
    if isinstance(tokenizer, Tokenizer):
        tokenizer.decoder = decoders.ByteLevel()
        encode: Callable[[str], list[int]] = lambda text: (  # noqa: E731
            tokenizer.encode(text, add_special_tokens=False).ids
        )
    else:
        encode = tokenizer.encode
    cases = []
    for text in texts:
        ids = encode(text)
        decoded = tokenizer.decode(ids)
        cases.append({"text": text, "ids": ids} | ({} if decoded == text else {"decoded": decoded}))
    return cases


def main(data: Path, out: Path) -> None:
    """Write one file a tokenizer."""
    made: dict[str, Callable[[Path], Any]] = {
        "tiny-qwen2": qwen2,
        "tiny-phi3": phi_3,
        "tiny-gpt2": lambda path: byte_level(path, [], own_words=True),
        "tiny-gpt-oss": lambda path: _gpt_oss(path, data),
    }
    short = [text[:LONGEST_TINY] for text in TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in made.items():
            path = Path(folder) / f"{name}.gguf"
            write_model(path, name)
            _write(out, name, _digest(path), _cases(make(path), short))
    _write(out, "smollm2", _digest(DEFAULT_MODEL), _cases(_smollm2(DEFAULT_MODEL), list(TEXTS)))
    write_reference_models(out)


def write_reference_models(out: Path) -> None:
    """Write the goldens of the models that profile m0 is about."""
    for name, vectors in REFERENCE_MODELS.items():
        golden = json.loads((VECTORS / f"{vectors}.json").read_text(encoding="utf-8"))
        _write(out, name, registry()[name].sha256, golden["cases"])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(out: Path, name: str, sha256: str, cases: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    head = json.dumps({"model": name, "sha256": sha256})[:-1]
    (out / f"{name}.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
