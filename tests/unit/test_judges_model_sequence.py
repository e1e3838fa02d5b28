"""The judges of the models in sequence: what they pass, and how each rule fails."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import exchange, run
from tests.unit.test_judges_architectures import HEALTH, SHA

TEXT = "Count to three: one, two, three."
SERVED = {"architecture": "qwen2", "adapter": "LlamaAdapter", "vocab_size": 539}
LIMITS = {
    "device_ratio": 0.01, "device_bytes": 100, "min_requests": 3, "rss_growth_bytes": 50
}  # fmt: skip


class Seen:
    """A model of the sequence that does all well; a test breaks one thing of it."""

    test = "test_serves[tiny-qwen2]"

    def __init__(self) -> None:
        self.health: dict[str, Any] = {**HEALTH, **SERVED}
        self.texts = [["one", " two"]] * 2
        self.asked: dict[str, Any] = {
            "prompt": "Count to three", "max_tokens": 20, "temperature": 0.0
        }  # fmt: skip
        self.ids: Any = [5, 6, 7]
        self.back, self.back_ids = TEXT, [5, 6, 7]
        self.completed: Any = {"choices": [{"text": "one"}]}
        self.events = ["model_load_start", "model_load_progress", "model_load_complete"]
        self.file = "0.gguf"
        self.used = [1000, 1100]
        self.anonymous: list[Any] = [10, 60]
        self.gone: dict[str, Any] = {
            "processes": [1], "exit_code": 0, "still_running": [], "temporary_files": [],
        }  # fmt: skip
        self.device_bytes: Any = None
        self.after_stop: int | None = None

    def exchanges(self) -> dict[str, tuple[Exchange, ...]]:
        memory = [
            exchange("/health", {**self.health, "vram_bytes_used": used}) for used in self.used
        ]
        answers = [run(texts, at_ms=20 * i, **self.asked) for i, texts in enumerate(self.texts)]
        return {
            "health": (exchange("/health", self.health),),
            "answers": tuple(answers),
            "tokenized": (exchange("/tokenize", {"ids": self.ids}, sent={"text": TEXT}),),
            "detokenized": (
                exchange("/detokenize", {"text": self.back}, sent={"ids": self.back_ids}),
            ),
            "completed": (exchange("/v1/completions", self.completed, sent={}),),
            "requests": tuple(run(["one"], at_ms=20 * i) for i in range(3)),
            "memory_before": (memory[0],),
            "memory_after": (memory[1],),
            "answer_after_stop": (exchange(status=self.after_stop),),
        }

    def judged(self, check: str) -> Finding:
        facts = {
            "model_sha256": SHA,
            "model_file": self.file,
            "log_lines": [json.dumps({"event": event}) for event in self.events],
            "anonymous_bytes": self.anonymous,
            "device_bytes": self.device_bytes,
            **self.gone,
        }
        seen = Observation(check, self.test, 1, self.exchanges(), facts)
        return JUDGES[check](seen, LIMITS)


CHECKS = (
    "G3-FACTORY", "G3-LLAMA", "G4-MODELS-LOAD", "G4-MODELS-GENERATE", "G4-MODELS-DETERMINISM",
    "G4-MODELS-ADAPTER", "G4-MODELS-TOKENIZER", "G4-MODELS-CLEANUP",
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_a_model_that_does_all_well_passes(check: str) -> None:
    found = Seen().judged(check)
    assert found.verdict == Verdict.PASS, found.message


def change(**changed: Any) -> Callable[[Seen], None]:
    def apply(seen: Seen) -> None:
        for name, value in changed.items():
            old = getattr(seen, name)
            setattr(seen, name, {**old, **value} if isinstance(old, dict) else value)

    return apply


ON_GPU = {"device": "cuda:0"}
FAILING = [
    ("G4-MODELS-LOAD", change(events=["model_load_start"]), "0 model_load_complete"),
    ("G4-MODELS-LOAD", change(events=["model_load_start"] * 2), "2 model_load_start"),
    ("G4-MODELS-LOAD", change(health={"model_sha256": "cd"}), "model_sha256"),
    ("G4-MODELS-LOAD", change(test="test_serves[gpt-oss-20b]"), "wanted the published be37a636"),
    ("G4-MODELS-GENERATE", change(asked={"prompt": "Hello"}), "asked"),
    ("G4-MODELS-GENERATE", change(texts=[[]]), "no token"),
    ("G4-MODELS-GENERATE", change(texts=[["", ""]]), "without any text"),
    ("G4-MODELS-DETERMINISM", change(texts=[["one"]]), "1 answers"),
    ("G4-MODELS-DETERMINISM", change(texts=[["one", " two"], ["one"]]), "same greedy request"),
    ("G4-MODELS-DETERMINISM", change(asked={"temperature": 0.5}), "not greedy"),
    ("G4-MODELS-ADAPTER", change(health={"adapter": "GPTAdapter"}), "wanted 'LlamaAdapter'"),
    ("G4-MODELS-ADAPTER", change(health={"architecture": "llama"}), "wanted 'qwen2'"),
    ("G3-FACTORY", change(health={"adapter": "GPTAdapter"}), "wanted 'LlamaAdapter'"),
    ("G3-GPT", change(), "the check is of GPTAdapter"),
    ("G3-LLAMA", change(completed={"choices": []}), "wanted one choice"),
    ("G3-LLAMA", change(completed={"choices": [{"text": ""}]}), "no text"),
    ("G3-LLAMA", change(completed={"choices": [{"text": "eins"}]}), "says 'eins'"),
    ("G4-MODELS-TOKENIZER", change(health={"tokenizer_kind": "gguf-spm"}), "gguf-spm"),
    ("G4-MODELS-TOKENIZER", change(health={"vocab_size": 540}), "540"),
    ("G4-MODELS-TOKENIZER", change(ids=None), "ids are None"),
    ("G4-MODELS-TOKENIZER", change(ids=[5, 539]), "outside the vocabulary"),
    ("G4-MODELS-TOKENIZER", change(back_ids=[5]), "other ids"),
    ("G4-MODELS-TOKENIZER", change(back="Count"), "comes back as 'Count'"),
    ("G4-MODELS-CLEANUP", change(used=[1000, 1101]), "101 bytes more in use"),
    ("G4-MODELS-CLEANUP", change(anonymous=[10, 61]), "51 anonymous bytes more"),
    ("G4-MODELS-CLEANUP", change(gone={"exit_code": -9}), "exit code -9"),
    ("G4-MODELS-CLEANUP", change(gone={"still_running": [7]}), "[7] still run"),
    ("G4-MODELS-CLEANUP", change(gone={"temporary_files": ["x"]}), "temporary files"),
    ("G4-MODELS-CLEANUP", change(after_stop=200), "still answers"),
    ("G4-MODELS-CLEANUP", change(health=ON_GPU, device_bytes=[0, 101]), "101 device bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "broken", "said"), FAILING)
def test_each_rule_can_fail(check: str, broken: Callable[[Seen], None], said: str) -> None:
    seen = Seen()
    broken(seen)
    found = seen.judged(check)
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def test_too_few_requests_fail() -> None:
    seen = Seen()
    seen_all = Observation(
        "G4-MODELS-CLEANUP", seen.test, 1, seen.exchanges(), {"model_sha256": SHA}
    )
    found = JUDGES["G4-MODELS-CLEANUP"](seen_all, {**LIMITS, "min_requests": 4})
    assert "only 3 requests" in found.message


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        ("G3-FACTORY", change(file="tiny-qwen2.gguf")),
        ("G4-MODELS-CLEANUP", change(anonymous=[None, 1])),
        ("G4-MODELS-CLEANUP", change(gone={"processes": []})),
        ("G4-MODELS-CLEANUP", change(health=ON_GPU)),
        ("G4-MODELS-ADAPTER", change(test="test_serves[strange]")),
    ],
)
def test_what_was_not_seen_is_an_error(check: str, broken: Callable[[Seen], None]) -> None:
    seen = Seen()
    broken(seen)
    assert seen.judged(check).verdict == Verdict.ERROR
