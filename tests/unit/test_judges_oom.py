"""The judges of out of memory: what they pass, and how each rule fails."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import events, exchange, run, stream

HEALTH = {
    "status": "healthy", "model": "m", "model_sha256": "aa", "resident": True,
    "quant_kind": "Q4_1", "vram_bytes_used": 9, "tokenizer_kind": "gguf-bpe", "vocab_size": 9,
    "context_length": 9, "kv_dtype": "f32", "adapter": "a", "architecture": "llama",
    "device": "cpu", "backend": "cpu", "uptime_seconds": 1.0, "worker_id": "w", "version": "0",
    "kv_bytes": 0,
}  # fmt: skip
ERROR = {
    "code": "VRAM_OOM",
    "message": "full: 20 bytes required, 0 bytes available",
    "retriable": True,
}
SICK = {**HEALTH, "status": "unhealthy", "last_error": {"code": "VRAM_OOM"}}


def health(uptime_s: float = 1.0, **changed: Any) -> Exchange:
    return exchange("/health", {**HEALTH, "uptime_seconds": uptime_s, **changed})


def broken(
    error: dict[str, Any], tokens: int = 2, job: str = "x", dropped: Sequence[str] = ()
) -> Exchange:
    sent = {"job_id": job, "prompt": "p", "max_tokens": 99}
    told = [e for e in events(["a"] * tokens, sent)[:-2] if e[0] not in dropped]
    return stream([*told, ("error", error)], sent, at_ms=100)


def exhaustion(**changed: Any) -> Observation:
    named: dict[str, Any] = {
        "before": run(["a", "b"], at_ms=0),
        "idle": health(),
        "long": (broken(ERROR), broken(ERROR, job="y")),
        "sick": exchange("/health", SICK),
        "after": run(["a", "b"], at_ms=300),
        "second": run(["a", "b"], at_ms=400),
        "recovered": health(2.0),
        **{k: v for k, v in changed.items() if isinstance(v, Exchange | tuple)},
    }
    facts = {
        "at_first": {"pid": 7, "create_time": 1.5},
        "at_last": {"pid": 7, "create_time": 1.5},
        "kv_limit_bytes": 64,
        "model_sha256": "aa",
        **{k: v for k, v in changed.items() if not isinstance(v, Exchange | tuple)},
    }
    each = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items()}
    return Observation("G4", "test_kv_budget_exhausted", 1, each, facts)


def twice(error: dict[str, Any], **more: Any) -> tuple[Exchange, ...]:
    return broken(error, **more), broken(error, job="y", **more)


def judged(check: str, **changed: Any) -> Finding:
    return JUDGES[check](exhaustion(**changed), {})


@pytest.mark.parametrize("name", ["KV", "MESSAGE", "ALIVE", "RECOVERS", "EVENT", "HEALTH"])
def test_survival_passes_and_a_budget_that_is_not_kept_does_not(name: str) -> None:
    assert judged(f"G4-OOM-{name}").verdict == Verdict.PASS, judged(f"G4-OOM-{name}").message
    if name != "RECOVERS":
        kept = run(["a"], at_ms=100)
        assert judged(f"G4-OOM-{name}", long=(kept, broken(ERROR))).verdict == Verdict.FAIL
    assert judged(f"G4-OOM-{name}", long=()).verdict == Verdict.ERROR


FAILING: list[tuple[str, dict[str, Any], str]] = [
    ("KV", {"long": twice({**ERROR, "code": "INTERNAL"})}, "wanted error VRAM_OOM"),
    ("KV", {"long": twice(ERROR, tokens=0)}, "before its first token"),
    ("KV", {"long": (broken(ERROR), broken(ERROR, tokens=1))}, "stayed taken"),
    ("KV", {"sick": exchange("/health", {**SICK, "kv_bytes": 5})}, "are held"),
    ("MESSAGE", {"long": twice({**ERROR, "message": "full"})}, "names no bytes"),
    (
        "MESSAGE",
        {"long": twice({**ERROR, "message": "2 bytes required, 3 bytes available"})},
        "no lack",
    ),
    (
        "MESSAGE",
        {"long": twice({**ERROR, "message": "99 bytes required, 65 bytes available"})},
        "of a budget of 64",
    ),
    ("ALIVE", {"at_last": {"pid": 8, "create_time": 1.5}}, "pid was 7"),
    ("ALIVE", {"at_last": {"pid": 7, "create_time": 2.5}}, "create_time was 1.5"),
    ("ALIVE", {"recovered": health(0.5)}, "uptime went"),
    ("RECOVERS", {"after": run(["a", "c"], at_ms=300, ids=[100, 102])}, "run 2 differs"),
    ("RECOVERS", {"after": run(["a", "b"], at_ms=50)}, "do not stand around"),
    ("EVENT", {"long": twice({**ERROR, "retriable": False})}, "must be retriable"),
    ("EVENT", {"long": twice({**ERROR, "message": "a\nb"})}, "more than one line"),
    ("EVENT", {"long": twice({**ERROR, "stack": "s"})}, "error has"),
    ("EVENT", {"long": twice(ERROR, tokens=0, dropped=["started"])}, "no started event"),
    ("HEALTH", {"idle": exchange("/health", SICK)}, "status is 'unhealthy'"),
    ("HEALTH", {"sick": exchange("/health", {**SICK, "status": "healthy"})}, "after VRAM_OOM"),
    ("HEALTH", {"sick": exchange("/health", {**SICK, "last_error": {}})}, "last_error is"),
    ("HEALTH", {"recovered": exchange("/health", SICK)}, "status is 'unhealthy'"),
]


@pytest.mark.parametrize(("name", "changed", "said"), FAILING)
def test_each_rule_of_survival_can_fail(name: str, changed: dict[str, Any], said: str) -> None:
    found = judged(f"G4-OOM-{name}", **changed)
    assert (found.verdict, said in found.message) == (Verdict.FAIL, True), found.message


def test_metrics_beside_the_error_fail() -> None:
    sent = {"job_id": "x", "prompt": "p", "max_tokens": 99}
    both = stream([*events(["a"], sent)[:-1], ("error", ERROR)], sent, at_ms=100)
    found = judged("G4-OOM-EVENT", long=(both, both))
    assert (found.verdict, "metrics stand beside" in found.message) == (Verdict.FAIL, True)


def test_an_unseen_process_is_an_error() -> None:
    found = judged("G4-OOM-ALIVE", at_first={"pid": None, "create_time": None})
    assert found.verdict == Verdict.ERROR


TOLD = {
    "event": "error", "code": "INSUFFICIENT_VRAM", "message": "too big", "device": "cpu",
    "model_path": "/a/m.gguf", "required_bytes": 100, "available_bytes": 40,
}  # fmt: skip
EXIT = {
    "code": 1, "stdout": "", "stderr": json.dumps(TOLD), "duration_s": 1.0, "timed_out": False,
    "oom_killed": False, "pid": 7,
}  # fmt: skip


def loaded(told: dict[str, Any] | None = None, **ended: Any) -> Finding:
    stderr = {} if told is None else {"stderr": json.dumps({**TOLD, **told})}
    facts = {"exit": {**EXIT, **stderr, **ended}, "limit_bytes": 50, "model_bytes": 100}
    named = {**facts, "model_name": "m.gguf"}
    test = "test_model_does_not_fit[half]"
    return JUDGES["G4-OOM-LOAD"](Observation("G4-OOM-LOAD", test, 1, {}, named), {})


def full(told: dict[str, Any], **facts: int) -> Finding:
    """A start on a device that another process has filled."""
    stderr = json.dumps({**TOLD, "required_bytes": 100, "available_bytes": 40, **told})
    named = {"exit": {**EXIT, "stderr": stderr}, "model_bytes": 100, "model_name": "m.gguf"}
    held = {"held_by_another": 900, "left_bytes": 50, **facts}
    seen = Observation("G4-OOM-LOAD", "test_device_is_full", 1, {}, {**named, **held})
    return JUDGES["G4-OOM-LOAD"](seen, {})


def test_a_device_that_is_full_is_told() -> None:
    assert full({}).verdict == Verdict.PASS
    assert full({}, held_by_another=50).verdict == Verdict.ERROR
    for told, said in (
        ({"available_bytes": 51}, "50 were left"),
        ({"required_bytes": 90, "available_bytes": 95}, "95 bytes available, 50"),
        ({"required_bytes": 60}, "60 bytes required for a file of 100"),
        ({"code": "CUDA_ERROR"}, "code CUDA_ERROR"),
    ):
        found = full(told)
        assert (found.verdict, said in found.message) == (Verdict.FAIL, True), found.message
    assert "no lack" in full({"required_bytes": 95, "available_bytes": 95}, left_bytes=99).message


def test_a_clean_refusal_at_start_passes() -> None:
    assert loaded().verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("told", "ended", "said"),
    [
        (None, {"timed_out": True}, "did not end"),
        (None, {"code": 0}, "exit code 0"),
        (None, {"oom_killed": True}, "the limit was not kept"),
        (None, {"stdout": "Traceback (most recent call last)"}, "traceback"),
        (None, {"stderr": json.dumps({"event": "ready"})}, "too little memory"),
        (None, {"stderr": ""}, "0 error events"),
        ({"device": ""}, {}, "device is no text"),
        ({"required_bytes": None}, {}, "required_bytes is no count"),
        ({"code": "INTERNAL"}, {}, "code INTERNAL"),
        ({"model_path": "/a/other.gguf"}, {}, "names the model 'other.gguf'"),
        ({"required_bytes": 45}, {}, "45 bytes required"),
        ({"available_bytes": 51}, {}, "51 available"),
        ({"required_bytes": 60}, {}, "for a file of 100"),
    ],
)
def test_each_rule_of_the_start_can_fail(
    told: dict[str, Any] | None, ended: dict[str, Any], said: str
) -> None:
    found = loaded(told, **ended)
    assert (found.verdict, said in found.message) == (Verdict.FAIL, True), found.message


def test_an_empty_completion_recovers_nothing() -> None:
    empty = [run([], at_ms=at) for at in (0, 300, 400)]
    found = judged("G4-OOM-RECOVERS", before=empty[0], after=empty[1], second=empty[2])
    assert (found.verdict, "is empty" in found.message) == (Verdict.FAIL, True)
