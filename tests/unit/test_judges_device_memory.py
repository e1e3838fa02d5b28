"""Judges of device memory and of energy: what they pass, and how each rule fails."""

import json
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import exchange, run

HEALTH: dict[str, Any] = {
    "status": "healthy", "model": "m", "model_sha256": "aa", "resident": True,
    "quant_kind": "Q4_1", "vram_bytes_used": 1000, "tokenizer_kind": "gguf-bpe", "vocab_size": 9,
    "context_length": 9, "kv_dtype": "f16", "adapter": "a", "architecture": "llama",
    "device": "cuda:0", "backend": "cuda", "uptime_seconds": 1.0, "worker_id": "w", "version": "0",
    "kv_bytes": 0, "weights_bytes": 700, "workspace_bytes": 300,
}  # fmt: skip
LIMITS = {
    "max_host_rss_bytes": 80, "chunk_bytes": 20, "tolerance_ratio": 0.05, "tolerance_bytes": 10,
    "max_device_bytes": 2000, "envelope_ratio": 0.2, "context_tokens": 100,
    "min_sensed_seconds": 2.0, "min_tokens": 4,
}  # fmt: skip
PASS, FAIL, ERROR = Verdict.PASS, Verdict.FAIL, Verdict.ERROR


def health(**changed: Any) -> Exchange:
    return exchange("/health", {**HEALTH, **changed})


def judged(id_: str, test: str, named: dict[str, Any]) -> Finding:
    many = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items()}
    seen = {k: v for k, v in many.items() if isinstance(v[0], Exchange)}
    facts = {k: v for k, v in named.items() if k not in seen}
    return JUDGES[id_](Observation(id_, test, 1, seen, facts), LIMITS)


def narrated(event: str, **fields: Any) -> str:
    return json.dumps({"event": event, "level": "info", **fields})


ONE = {
    "health": health(), "processes": [7, 8], "gpus": [[0, [7, 99]], [1, [99]]],
    "model_sha256": "aa",
}  # fmt: skip
ENDED = {"code": 1, "stdout": "", "duration_s": 1.0, "timed_out": False, "oom_killed": False}
REFUSAL = narrated("error", code="CUDA_ERROR", message="cuda:99: 1 device", device="cuda:99")
REFUSED = {"exit": {**ENDED, "stderr": REFUSAL}, "device": "cuda:99"}
ALLOCATIONS = [
    {"purpose": name, "bytes": 9, "kind": "device", "device": 0}
    for name in ("weights", "kv", "workspace")
]  # fmt: skip
PLAIN = {"probe": {"device": "cuda:0", "cases": ALLOCATIONS}}
ONLY = {
    "idle": health(), "during": health(kv_bytes=50), "device_bytes": 1500, "peak_rss_bytes": 100,
    "model_bytes": 700, "model_sha256": "aa",
}  # fmt: skip
CHECKED = {
    "first": health(), "last": health(), "log_lines": [narrated("residency_check")] * 2,
    "fault": "none", "model_sha256": "aa",
}  # fmt: skip
WHY = "16 bytes are managed memory"
VIOLATION = narrated("residency_check", level="error", message=WHY)
SICK: dict[str, Any] = {
    "status": "unhealthy", "resident": False, "last_error": {"code": "X", "message": WHY},
}  # fmt: skip
VIOLATED = {
    **CHECKED, "fault": "managed-pointer", "last": health(**SICK), "log_lines": [VIOLATION] * 2,
}  # fmt: skip
TRACKED = {
    "health": health(), "tiny": health(vram_bytes_used=100), "tiny_device_bytes": 600,
    "device_bytes": 1550, "model_sha256": "aa",
}  # fmt: skip
LARGE = {
    "planned": {"context_length": 100, "weights_bytes": 900, "kv_f16_bytes": 100},
    "idle": health(), "during": health(kv_bytes=90), "device_bytes": 1150, "model_sha256": "aa",
    "answer": run(["a"], started={"prompt_tokens": 96}),
}  # fmt: skip
METERED = {
    "source": "nvml-counter", "accuracy": "", "health": health(),
    "idle": {"joules": {"gpu0": 200.0}, "seconds": 2.0},
    "busy": {"joules": {"gpu0": 600.0}, "seconds": 3.0},
    "jobs": (run(["a", "b"]), run(["c", "d"])),
}  # fmt: skip
CONTEXT = "G1-CUDA-CONTEXT"
GOOD: list[tuple[str, str, dict[str, Any]]] = [
    (CONTEXT, "test_one_context_on_the_chosen_device", ONE),
    (CONTEXT, "test_wrong_device_is_refused[cuda:99]", REFUSED),
    (CONTEXT, "test_every_allocation_is_plain", PLAIN),
    ("G1-VRAM-ONLY", "t", ONLY),
    ("G1-VRAM-RESIDENCY", "t", CHECKED),
    ("G1-VRAM-RESIDENCY", "t", VIOLATED),
    ("G1-VRAM-TRACKING", "t", TRACKED),
    ("G3-24GB", "t", LARGE),
    ("G4-ENERGY", "t", METERED),
]


@pytest.mark.parametrize(("id_", "test", "named"), GOOD)
def test_good_ones_pass(id_: str, test: str, named: dict[str, Any]) -> None:
    found = judged(id_, test, named)
    assert found.verdict == PASS, found


def ended(**changed: Any) -> dict[str, Any]:
    return {"exit": {**ENDED, "stderr": REFUSAL, **changed}}


def allocated(**changed: Any) -> dict[str, Any]:
    return {"probe": {"device": "cuda:0", "cases": [*ALLOCATIONS[1:], ALLOCATIONS[0] | changed]}}


BAD: list[tuple[int, dict[str, Any], Verdict, str]] = [
    (0, {"gpus": [[0, [99]]]}, ERROR, "names none"),
    (0, {"gpus": [[0, [7]], [1, [8]]]}, FAIL, "contexts on 2 GPUs"),
    (0, {"gpus": [[0, [7, 8]]]}, FAIL, "2 processes of the engine"),
    (0, {"gpus": [[1, [7]]]}, FAIL, "the context is on GPU 1, wanted 0"),
    (0, {"visible": "1"}, FAIL, "the context is on GPU 0, wanted 1"),
    (0, {"health": health(device="cpu")}, ERROR, "wanted a CUDA device"),
    (1, ended(timed_out=True), FAIL, "did not end"),
    (1, ended(code=0), FAIL, "exit code 0, wanted 1"),
    (1, ended(stdout="Traceback (most recent call last)"), FAIL, "traceback"),
    (1, ended(stderr="no such device"), FAIL, "no line names the device"),
    (1, ended(stderr="cuda:99"), FAIL, "0 error events"),
    (1, ended(stderr=REFUSAL.replace("CUDA_ERROR", "INTERNAL")), FAIL, "code INTERNAL"),
    (2, {"probe": {"device": "cuda:0", "cases": ALLOCATIONS[1:]}}, ERROR, "no allocation for"),
    (2, allocated(kind="managed"), FAIL, "are managed memory"),
    (2, allocated(device=1), FAIL, "on device 1"),
    (3, {"device_bytes": None}, ERROR, "were not seen"),
    (3, {"during": health()}, ERROR, "no job held KV bytes"),
    (3, {"device_bytes": 999}, FAIL, "the device holds 999"),
    (3, {"during": health(kv_bytes=1, weights_bytes=600)}, FAIL, "600 bytes of weights"),
    (3, {"during": health(kv_bytes=1, weights_bytes=900)}, FAIL, "900 bytes of weights"),
    (3, {"peak_rss_bytes": 101}, FAIL, "101 bytes were resident"),
    (4, {"log_lines": []}, ERROR, "0 residency checks"),
    (4, {"log_lines": [VIOLATION] * 2}, FAIL, "without any fault"),
    (4, {"last": health(**SICK)}, FAIL, "status is 'unhealthy'"),
    (5, {"last": health(last_error={})}, FAIL, "status 'healthy' with a managed pointer"),
    (5, {"last": health(**(SICK | {"resident": True}))}, FAIL, "resident"),
    (5, {"last": health(**(SICK | {"last_error": {"message": "no"}}))}, FAIL, "does not say why"),
    (5, {"log_lines": CHECKED["log_lines"]}, FAIL, "no residency check told"),
    (6, {"device_bytes": None}, ERROR, "does not tell"),
    (6, {"tiny_device_bytes": 99}, FAIL, "less than it reports"),
    (6, {"device_bytes": 1561}, FAIL, "off by -61"),
    (6, {"device_bytes": 1439}, FAIL, "off by 61"),
    (7, {"device_bytes": 1201}, FAIL, "planned: 20% apart"),
    (7, {"device_bytes": 2001}, FAIL, "at most 2000"),
    (7, {"device_bytes": None}, ERROR, "does not tell"),
    (7, {"planned": LARGE["planned"] | {"context_length": 9}}, FAIL, "planned for 9"),
    (7, {"answer": run(["a"], started={"prompt_tokens": 90})}, FAIL, "a prompt of 90 tokens"),
    (7, {"during": health()}, FAIL, "no KV bytes"),
    (8, {"source": "rapl"}, ERROR, "no sensor of the GPU"),
    (8, {"health": health(device="cpu")}, ERROR, "wanted a CUDA device"),
    (8, {"idle": {"joules": {"gpu0": 9.0}, "seconds": 1.0}}, FAIL, "idle: 1.0 s were sensed"),
    (8, {"busy": {"joules": None, "seconds": 3.0}}, FAIL, "busy: the sensor told nothing"),
    (8, {"busy": {"joules": {"gpu0": 0.0}, "seconds": 3.0}}, FAIL, "busy: 0.0 J"),
    (8, {"busy": {"joules": {"gpu0": 300.0}, "seconds": 3.0}}, FAIL, "100.0 W while it works"),
    (8, {"jobs": (run(["a"]),)}, FAIL, "only 1 tokens"),
]


@pytest.mark.parametrize(("which", "changed", "verdict", "says"), BAD)
def test_each_rule_can_fail(
    which: int, changed: dict[str, Any], verdict: Verdict, says: str
) -> None:
    id_, test, named = GOOD[which]
    found = judged(id_, test, {**named, **changed})
    assert (found.verdict, says in found.message) == (verdict, True), found


def test_a_misspelt_device_is_a_wrong_argument() -> None:
    named = {"exit": {**ENDED, "code": 2, "stderr": "got cuda:x"}, "device": "cuda:x"}
    assert judged(CONTEXT, "test_wrong_device_is_refused[cuda:x]", named).verdict == PASS


def test_energy_is_told_above_the_idle_power() -> None:
    numbers = judged("G4-ENERGY", "t", METERED).numbers
    assert numbers["joules_a_token"] == pytest.approx(150.0)
    assert numbers["joules_a_token_above_idle"] == pytest.approx(75.0)
