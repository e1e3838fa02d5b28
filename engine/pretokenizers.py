"""How text is cut into words before byte-pair merging, by the name in `tokenizer.ggml.pre`.

Patterns are those of the vendors' published tokenizer.json files.
"""

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS_AND_MARKS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + _CONTRACTIONS
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + _CONTRACTIONS
    + "?"
)


def _words(digits: str) -> str:
    """The pattern that Llama 3 and Qwen2 share but for how many digits make a word."""
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    return "|".join((_CONTRACTIONS, letters, digits, r" ?[^\s\p{L}\p{N}]+[\r\n]*", _TAIL))


@dataclass(frozen=True)
class Pretokenizer:
    """One way of cutting text.

    `pattern` None means GPT-2's own; `digits` cuts every digit off first; `ignore_merges` takes a
    word that is a token as it is; `nfc` composes characters first.
    """

    pattern: str | None = None
    digits: bool = False
    ignore_merges: bool = False
    nfc: bool = False

    def build(self) -> Any:
        """The `tokenizers` object that cuts and then maps bytes to printable characters."""
        steps: list[Any] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), "isolated"))
        use_own = self.pattern is None
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_own))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> Any:
        """The `tokenizers` normalizer, or None."""
        return normalizers.NFC() if self.nfc else None


_LLAMA_3 = Pretokenizer(_words(r"\p{N}{1,3}"), ignore_merges=True)
_O200K = Pretokenizer(
    "|".join((_LETTERS_AND_MARKS, r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _TAIL)),
    ignore_merges=True,
)

PRETOKENIZERS: dict[str, Pretokenizer] = {
    "gpt-2": Pretokenizer(),
    "smollm": Pretokenizer(digits=True),
    "qwen2": Pretokenizer(_words(r"\p{N}"), nfc=True),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "gpt-4o": _O200K,
}
