"""The judge of tokenizers: what it passes, and how each of its rules fails."""

import copy
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Finding, Observation, Verdict
from tests.unit.recorded import exchange

CASES = [
    {"text": "x" * 2000, "ids": [7, 8, 9]},
    {"text": "cafe\u0301", "ids": [1, 2], "decoded": "café"},
]


class Seen:
    """A run that agrees in all; a test breaks one thing of it."""

    def __init__(self) -> None:
        self.golden: dict[str, Any] = {"sha256": "ab", "cases": copy.deepcopy(CASES)}
        self.sent: list[dict[str, Any]] = [{"text": case["text"]} for case in CASES]
        self.ids: list[Any] = [case["ids"] for case in CASES]
        self.returned: list[dict[str, Any]] = [{"ids": case["ids"]} for case in CASES]
        self.texts = [
            {"text": case.get("decoded", case["text"]), "dropped_bytes": 0} for case in CASES
        ]

    def judged(self, min_vectors: int = 2) -> Finding:
        there = zip(self.ids, self.sent, strict=False)
        back = zip(self.texts, self.returned, strict=False)
        named = {
            "encoded": tuple(exchange("/tokenize", {"ids": ids}, sent=sent) for ids, sent in there),
            "decoded": tuple(exchange("/detokenize", text, sent=sent) for text, sent in back),
        }
        facts = {"golden": self.golden, "model_sha256": "ab"}
        seen = Observation("G2-TOKENIZER-QWEN2", "test_golden_vectors[x]", 1, named, facts)
        return JUDGES["G2-TOKENIZER-QWEN2"](seen, {"min_vectors": min_vectors})


def test_agreement_passes() -> None:
    assert Seen().judged().verdict == Verdict.PASS


def test_too_few_vectors_fail() -> None:
    assert "only 2 different texts" in Seen().judged(min_vectors=3).message


def other_ids(seen: Seen) -> None:
    seen.ids[0] = [7, 8, 10]


def no_ids(seen: Seen) -> None:
    seen.ids[0] = None


def unnormalized(seen: Seen) -> None:
    seen.texts[1]["text"] = CASES[1]["text"]


def dropped(seen: Seen) -> None:
    seen.texts[1]["dropped_bytes"] = 1


def no_long_text(seen: Seen) -> None:
    seen.golden["cases"][0]["text"] = "x"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_ids, "from index 2"),
        (no_ids, "from index 0"),
        (unnormalized, "comes back as"),
        (dropped, "bytes are dropped"),
        (no_long_text, "the longest text has 5 characters"),
    ],
)
def test_each_rule_can_fail(change: Any, said: str) -> None:
    seen = Seen()
    change(seen)
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def other_file(seen: Seen) -> None:
    seen.golden["sha256"] = "cd"


def other_text(seen: Seen) -> None:
    seen.sent[0] = {"text": "y"}


def other_returned(seen: Seen) -> None:
    seen.returned[0] = {"ids": [1]}


def one_missing(seen: Seen) -> None:
    seen.ids.pop()


@pytest.mark.parametrize("change", [other_file, other_text, other_returned, one_missing])
def test_evidence_about_something_else_is_an_error(change: Any) -> None:
    seen = Seen()
    change(seen)
    assert seen.judged().verdict == Verdict.ERROR
