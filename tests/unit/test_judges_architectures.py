"""The judge of logits and greedy tokens: what it passes, and how each of its rules fails."""

import copy
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.architectures import MIN_FORCED, MIN_GREEDY
from harness.observation import Finding, Observation, Verdict
from tests.unit.recorded import events, exchange, stream

SHA = "ab"
HEALTH = {
    "status": "healthy", "resident": True, "model": "m", "model_sha256": SHA, "quant_kind": "F32",
    "vram_bytes_used": 1, "tokenizer_kind": "gguf-bpe", "vocab_size": 9, "context_length": 9,
    "kv_dtype": "f32", "adapter": "LlamaAdapter", "architecture": "qwen2", "device": "cpu",
    "backend": "cpu", "uptime_seconds": 1.0, "worker_id": "w", "version": "1",
}  # fmt: skip
TOP = [[5, -1.0], [6, -2.0]]
FORCED = {
    "prompt_ids": [1], "completion_ids": [3] * MIN_FORCED, "logprobs": [-4.0] * MIN_FORCED,
    "argmax_ids": [5] * MIN_FORCED, "margins": [1.0] * MIN_FORCED,
    "logit_range": [10.0] * MIN_FORCED,
}  # fmt: skip
GREEDY = {
    "prompt_ids": [2], "completion_ids": [5] * MIN_GREEDY, "top": [TOP] * MIN_GREEDY,
    "logit_range": [10.0] * MIN_GREEDY,
}  # fmt: skip


class Seen:
    """A run that agrees in all; a test breaks one thing of it."""

    def __init__(self) -> None:
        self.golden: dict[str, Any] = copy.deepcopy(
            {"architecture": "qwen2", "sha256": SHA, "forced": FORCED, "greedy": GREEDY}
        )
        self.health: dict[str, Any] = dict(HEALTH)
        row = {"token_id": 3, "logprob": -4.0, "argmax_id": 5}
        self.scores = [dict(row) for _ in range(MIN_FORCED)]
        self.ids = [5] * MIN_GREEDY
        self.top = [[5, -1.0], [6, -2.0]]
        self.sent = {"prompt_ids": [2], "temperature": 0.0}

    def judged(self, bound: float = 0.001) -> Finding:
        told = events(["x"] * len(self.ids), self.sent, ids=self.ids)
        alternatives = [{"id": id_, "logprob": value} for id_, value in self.top]
        told = [
            (name, table | {"top": alternatives} if name == "token" else table)
            for name, table in told
        ]
        asked = {"prompt_ids": [1], "completion_ids": [3] * MIN_FORCED}
        named = {
            "health": (exchange("/health", self.health),),
            "forced": (exchange("/score", {"scores": self.scores}, sent=asked),),
            "greedy": (stream(told, self.sent),),
        }
        facts = {"golden": self.golden, "model_sha256": SHA}
        seen = Observation("G2-QWEN2", "test_logits_and_greedy_tokens[x]", 1, named, facts)
        return JUDGES["G2-QWEN2"](seen, {"logit_bound_ratio": bound})


def test_agreement_passes() -> None:
    found = Seen().judged()
    assert found.verdict == Verdict.PASS, found.message
    assert found.numbers["logprobs"] == MIN_FORCED + 4 * MIN_GREEDY


def other_logprob(seen: Seen) -> None:
    seen.scores[7]["logprob"] = -4.03


def other_choice(seen: Seen) -> None:
    seen.scores[7]["argmax_id"] = 6


def other_token(seen: Seen) -> None:
    seen.scores[7]["token_id"] = 4


def missing_score(seen: Seen) -> None:
    seen.scores.pop()


def other_greedy(seen: Seen) -> None:
    seen.ids[3] = 6


def fewer_greedy(seen: Seen) -> None:
    seen.ids.pop()


def other_alternative(seen: Seen) -> None:
    seen.top[1][1] = -2.03


def exchanged_alternatives(seen: Seen) -> None:
    seen.top = [[6, -1.0], [5, -2.0]]


def missing_alternative(seen: Seen) -> None:
    seen.top.pop()


def other_architecture(seen: Seen) -> None:
    seen.health["architecture"] = "llama"


def warm(seen: Seen) -> None:
    seen.sent["temperature"] = 0.5


def short_golden(seen: Seen) -> None:
    seen.golden["greedy"]["completion_ids"] = [5] * (MIN_GREEDY - 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_logprob, "logprob -4.03000, the oracle's -4.00000"),
        (other_choice, "prefers 6, the oracle 5"),
        (other_token, "another token is scored"),
        (missing_score, "not one score a token"),
        (other_greedy, "greedy tokens [5, 5, 5, 6"),
        (fewer_greedy, "greedy tokens"),
        (other_alternative, "greedy token 0: logprob -2.03"),
        (exchanged_alternatives, "greedy token 0: logprob"),
        (missing_alternative, "1 alternatives, wanted 2"),
        (other_architecture, "architecture is 'llama'"),
        (warm, "not greedy"),
        (short_golden, "only 15 greedy tokens"),
    ],
)
def test_each_rule_can_fail(change: Any, said: str) -> None:
    seen = Seen()
    change(seen)
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def test_a_tie_of_the_oracle_excuses_another_choice() -> None:
    seen = Seen()
    other_choice(seen)
    seen.golden["forced"]["margins"][7] = 0.01
    assert seen.judged().verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("name", "value"), [("architecture", "llama"), ("sha256", "cd"), ("forced", FORCED)]
)
def test_evidence_about_something_else_is_an_error(name: str, value: Any) -> None:
    seen = Seen()
    seen.golden[name] = value if name != "forced" else {**FORCED, "prompt_ids": [9]}
    assert seen.judged().verdict == Verdict.ERROR
