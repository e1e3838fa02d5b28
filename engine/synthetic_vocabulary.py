"""Small real tokenizers for generated models: every byte, common English words, the specials."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.vocabulary import BYTE_OF_CHARACTER, SPACE_MARK, TokenType

_COMMON_WORDS = (
    "the of and to in is it you that he was for on are with as his they be at one have this from "
    "or had by hot but some what there we can out other were all your when up use word how said an "
    "each she which do their time if will way about many then them would write like so these her "
    "long make thing see him two has look more day could go come did my sound no most number who "
    "over know water than call first people may down side been now find moon rain river stone leaf "
    "wind snow night morning frog pond old silence autumn spring count three minute hour light"
)

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_3 = (
    "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' "
    "+ message['content'] + '<|end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
HARMONY = (
    "{% for message in messages %}{{'<|start|>' + message['role'] + '<|message|>' "
    "+ message['content'] + '<|end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@dataclass(frozen=True)
class VocabularyKind:
    """A tokenizer family: its special tokens (the last ends an answer) and its chat template."""

    model: str
    pre: str
    specials: tuple[str, ...]
    template: str | None = None


KINDS: dict[str, VocabularyKind] = {
    "llama": VocabularyKind(
        "gpt2", "smollm", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CHATML
    ),
    "qwen2": VocabularyKind(
        "gpt2", "qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CHATML
    ),
    "phi3": VocabularyKind(
        "llama",
        "default",
        ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>"),
        PHI_3,
    ),
    "gpt2": VocabularyKind("gpt2", "gpt-2", ("<|endoftext|>",)),
    "gpt-oss": VocabularyKind(
        "gpt2",
        "gpt-4o",
        ("<|startoftext|>", "<|endoftext|>", "<|constrain|>", "<|channel|>", "<|start|>",
         "<|end|>", "<|message|>", "<|call|>", "<|return|>"),
        HARMONY,
    ),
}  # fmt: skip


def tokenizer_metadata(kind: VocabularyKind, vocab_size: int = 0) -> dict[str, Any]:
    """The `tokenizer.*` keys; words that no merge makes fill the list up to `vocab_size`."""
    space = SPACE_MARK if kind.model == "llama" else "Ġ"
    head = [("<unk>", 2), ("<s>", 3), ("</s>", 3)] if kind.model == "llama" else []
    singles = _spm_singles(space) if kind.model == "llama" else _byte_singles()
    merges, words = _merges(space)
    tokens = [*head, *singles, *((word, TokenType.NORMAL) for word in words)]
    n_filled = max(0, vocab_size - len(tokens) - len(kind.specials))
    tokens += [(f"{space}{_letters(index)}", TokenType.NORMAL) for index in range(n_filled)]
    tokens += [(text, TokenType.CONTROL) for text in kind.specials]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": kind.model,
        "tokenizer.ggml.pre": kind.pre,
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.token_type": np.array([type_ for _, type_ in tokens], np.int32),
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": kind.model == "llama",
    }
    if kind.model == "llama":
        scores = -np.arange(len(tokens), dtype=np.float32)
        metadata |= {"tokenizer.ggml.scores": scores, "tokenizer.ggml.bos_token_id": 1}
    else:
        metadata["tokenizer.ggml.merges"] = merges
    if kind.template:
        metadata["tokenizer.chat_template"] = kind.template
    return metadata


def _byte_singles() -> list[tuple[str, int]]:
    in_order = sorted(BYTE_OF_CHARACTER, key=BYTE_OF_CHARACTER.__getitem__)
    return [(character, TokenType.NORMAL) for character in in_order]


def _spm_singles(space: str) -> list[tuple[str, int]]:
    fallback = [(f"<0x{byte:02X}>", int(TokenType.BYTE)) for byte in range(256)]
    characters = [space, *(chr(code) for code in range(33, 127))]
    return [*fallback, *((character, int(TokenType.NORMAL)) for character in characters)]


def _merges(space: str) -> tuple[list[str], list[str]]:
    """Merges that spell each word from its left end, and the tokens they make."""
    merges: dict[str, str] = {}
    for word in (space + word for word in _COMMON_WORDS.split()):
        for end in range(2, len(word) + 1):
            merges.setdefault(word[:end], f"{word[: end - 1]} {word[end - 1]}")
    return list(merges.values()), list(merges)


def _letters(index: int) -> str:
    """A word of five or more capitals that no merge makes, another for each index."""
    text = ""
    while index or len(text) < 5:
        index, letter = divmod(index, 26)
        text += chr(65 + letter)
    return text
