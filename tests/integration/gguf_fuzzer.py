"""Opens mutated GGUF files in this process and prints what came of it as one JSON line.

Usage: python -m tests.integration.gguf_fuzzer N_FILES SEED FOLDER
"""

import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from engine.chat import ChatTemplate
from engine.config import ModelConfig
from engine.errors import EngineError
from engine.gguf import GGUFFile
from engine.synthetic import TINY, write_shape
from engine.tokenizer import Tokenizer

HOSTILE = (0, 1, 2, 7, 31, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
MESSAGES = [{"role": "user", "content": "Hello <|im_end|> 世界"}]


def corpus(folder: Path) -> list[tuple[bytes, int]]:
    """(file, where its tensor data starts) of a very small model of every architecture."""
    seeds = []
    for name, shape in TINY.items():
        small = replace(
            shape, n_layers=1, width=32, n_heads=2, n_kv_heads=2, head_dim=16, ffn_width=32,
            context_length=64, types={"default": "Q8_0"},
        )  # fmt: skip
        path = folder / name
        write_shape(path, small, name)
        content = path.read_bytes()
        seeds.append((content, content.rindex(b"output_norm") + 64))
    return seeds


def mutate(rng: random.Random, content: bytes, head: int) -> bytes:
    """One to four changes, most of them before the tensor data."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(MUTATIONS)(rng, changed, min(head, max(1, len(changed) - 9)))
    return bytes(changed)


def _flip(rng: random.Random, content: bytearray, head: int) -> None:
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(head)] = rng.randrange(256)


def _number(rng: random.Random, content: bytearray, head: int) -> None:
    form, mask = rng.choice((("<I", (1 << 32) - 1), ("<Q", (1 << 64) - 1)))
    at = rng.randrange(max(1, min(head, len(content) - 8)))
    raw = struct.pack(form, (rng.choice(HOSTILE) + rng.choice((0, 0, 1, -1))) & mask)
    content[at : at + len(raw)] = raw


def _front_number(rng: random.Random, content: bytearray, head: int) -> None:
    _number(rng, content, min(head, 1200))


def _truncate(rng: random.Random, content: bytearray, head: int) -> None:
    del content[rng.randrange(rng.choice((head, len(content)))) :]
    content.extend(b"\0" * max(0, 16 - len(content)))


def _move(rng: random.Random, content: bytearray, head: int) -> None:
    start, size = rng.randrange(head), rng.choice((1, 4, 8, 64, 1000))
    piece = bytes(content[start : start + size])
    to = rng.randrange(head)
    if rng.random() < 0.5:
        content[to : to + size] = piece
    elif rng.random() < 0.5:
        content[to:to] = piece
    else:
        del content[start : start + size]


def _data(rng: random.Random, content: bytearray, head: int) -> None:
    del head
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _key(rng: random.Random, content: bytearray, head: int) -> None:
    """Change the bytes after a key: its type, its value, an array's type and length."""
    key = rng.choice((b"token_type", b"tokens", b"merges", b"scores", b"_id", b"_count", b"_kv",
                      b"epsilon", b"window", b"template", b".pre", b"model", b"align"))  # fmt: skip
    at = content.find(key, 0, head)
    if at >= 0:
        start = at + len(key) + rng.choice((0, 4, 8, 16))
        raw = struct.pack("<Q", rng.choice(HOSTILE) & ((1 << 64) - 1))[: rng.choice((1, 4, 8))]
        content[start : start + len(raw)] = raw


MUTATIONS = (_flip, _number, _front_number, _truncate, _move, _data, _key, _key)


def load(path: Path) -> str:
    """Load all that comes before the weights; "" or the refusal's message."""
    try:
        with GGUFFile.open(path) as file:
            ModelConfig.from_file(file)
            tokenizer = Tokenizer.from_file(file)
            tokenizer.decode(tokenizer.encode("Hello <|im_end|> 世界 \0", parse_special=True))
            template = ChatTemplate.from_file(file, tokenizer)
            if template.available:
                template.encode(MESSAGES)
    except EngineError as refusal:
        return str(refusal)
    return ""


def main(n_files: int, seed: int, folder: Path) -> dict[str, object]:
    rng = random.Random(seed)
    seeds = corpus(folder)
    path = folder / "mutated.gguf"
    for content, _ in seeds:
        path.write_bytes(content)
        assert load(path) == "", "the corpus itself must load"
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest_s, largest, long_lines, outcomes = 0.0, 0, 0, Counter[str]()
    for _ in range(n_files):
        content = mutate(rng, *rng.choice(seeds))
        path.write_bytes(content)
        largest = max(largest, len(content))
        started = time.process_time()  # not of the clock: the machine may be busy
        message = load(path)
        slowest_s = max(slowest_s, time.process_time() - started)
        long_lines += "\n" in message or len(message) > 600
        outcomes["refused" if message else "loaded"] += 1
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) * 1024
    return {"files": n_files, "slowest_s": slowest_s, "grown_bytes": grown_bytes,
            "largest_bytes": largest, "long_lines": long_lines, **outcomes}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
