"""Judges of start, load progress and what is mapped: what they pass, and how each rule fails."""

import json
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation
from tests.unit.recorded import exchange

SHA256, SIZE = "ab" * 32, 1000
HEALTH = {
    "status": "healthy",
    "model": "m",
    "model_sha256": SHA256,
    "resident": True,
    "quant_kind": "Q4_1",
    "vram_bytes_used": 10,
    "tokenizer_kind": "gguf-bpe",
    "vocab_size": 5,
    "context_length": 7,
    "kv_dtype": "f16",
    "adapter": "llama",
    "architecture": "llama",
    "device": "cpu",
    "backend": "cpu",
    "uptime_seconds": 1.0,
    "worker_id": "w",
    "version": "1",
}


def judged(check: str, test: str, limits: dict[str, float] | None = None, **named: Any) -> Finding:
    seen = {k: (v,) for k, v in named.items() if isinstance(v, Exchange)}
    facts = {k: v for k, v in named.items() if k not in seen}
    return JUDGES[check](Observation(check, test, 1, seen, facts), limits or {})


def lines(*events: str) -> list[str]:
    return ["no JSON", *(json.dumps({"event": event}) for event in events)]


ORDER = ("startup", "model_load_start", "model_load_progress", "model_load_complete", "ready")


@pytest.mark.parametrize(
    ("events", "health", "ready_s", "says"),
    [
        (ORDER, {}, 1.0, "started in order"),
        (ORDER[1:], {}, 1.0, "0 startup events"),
        ((*ORDER, "ready"), {}, 1.0, "2 ready events"),
        ((*ORDER[:3], "ready", "model_load_complete"), {}, 1.0, "wanted the order"),
        ((*ORDER[:2], *ORDER[3:]), {}, 1.0, "no model_load_progress"),
        ((*ORDER, "model_load_progress"), {}, 1.0, "outside of the load"),
        (ORDER, {"status": "loading"}, 1.0, "status is 'loading'"),
        (ORDER, {"model_sha256": "cd" * 32}, 1.0, "model_sha256"),
        (ORDER, {"resident": False}, 1.0, "not resident"),
        (ORDER, {}, 61.0, "ready after 61.0 s"),
    ],
)
def test_the_order_of_a_start(
    events: tuple[str, ...], health: dict[str, Any], ready_s: float, says: str
) -> None:
    found = judged(
        "G1-START-ORDER",
        "test_start_order",
        {"ready_s": 60.0},
        log_lines=lines(*events),
        health=exchange("/health", {**HEALTH, **health}),
        model_sha256=SHA256,
        ready_s=ready_s,
    )
    assert says in found.message
    assert found.verdict == ("pass" if says == "started in order" else "fail")


CALL = {"method": "POST", "path": "/ready", "body": '{"worker_id": "w"}'}


@pytest.mark.parametrize(
    ("calls", "health", "verdict"),
    [
        ([CALL], {}, "pass"),
        ([CALL, CALL], {}, "fail"),
        ([{**CALL, "method": "GET"}], {}, "fail"),
        ([{**CALL, "body": "ready"}], {}, "fail"),
        ([{**CALL, "body": '{"worker_id": "another"}'}], {}, "fail"),
        ([CALL], {"status": "starting"}, "fail"),
        (None, {}, "error"),
    ],
)
def test_the_ready_callback(calls: Any, health: dict[str, Any], verdict: str) -> None:
    found = judged(
        "G1-START-CALLBACK",
        "test_ready_callback",
        callbacks=calls,
        worker_id="w",
        health=exchange("/health", {**HEALTH, **health}),
        model_sha256=SHA256,
    )
    assert found.verdict == verdict, found.message


def progress(percents: list[int], loaded: list[int], total: int = SIZE) -> list[str]:
    told = zip(percents, loaded, strict=True)
    event = {"event": "model_load_progress", "bytes_total": total}
    return [json.dumps({**event, "percent": p, "bytes_loaded": n}) for p, n in told]


ALL, GROWING = [0, 25, 50, 75, 100], [0, 250, 500, 750, 1000]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (progress(ALL, GROWING), "0 to 100 %"),
        (progress(ALL[:4], GROWING[:4]), "wanted [0, 25, 50, 75, 100]"),
        (progress([0, 50, 25, 75, 100], GROWING), "wanted [0, 25, 50, 75, 100]"),
        (progress(ALL, GROWING, total=2000), "bytes_total 2000"),
        (progress(ALL, GROWING, total=800), "bytes_total 800"),
        (progress(ALL, [0, 250, 400, 750, 1000]), "50 % told at 400"),
        (progress(ALL, [0, 250, 500, 750, 1001]), "the end is told at 1001"),
        ([], "load progress []"),
        ([*progress(ALL, GROWING)[:4], *progress([100], [1000], 990)], "bytes_total changes"),
    ],
)
def test_load_progress(told: list[str], says: str) -> None:
    found = judged("G4-PROGRESS", "test_start_order", log_lines=told, model_bytes=SIZE)
    assert says in found.message
    assert found.verdict == ("pass" if says == "0 to 100 %" else "fail")


FORBIDDEN_LIBRARY = "lib" + "llama" + ".so"  # put together, so that no file names it
MADE_OF: dict[str, Any] = {
    "distributions": ["haikugate", "numba"],
    "imports": ["json", "numba.core"],
    "files": ["engine/gguf.py", "docs/llama.md"],
    "maps": ["/lib/libc.so.6", "/models/m.gguf"],
    "open_files": ["/tmp/log"],
    "model_name": "m.gguf",
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "none in"),
        ({"distributions": ["haikugate", "llama_cpp_python"]}, "llama_cpp_python is"),
        ({"distributions": ["numba"]}, "not in its own closure"),
        ({"imports": ["ggml"]}, "ggml is"),
        ({"imports": ["llama_cpp.server"]}, "llama_cpp.server is"),
        ({"files": [f"engine/{FORBIDDEN_LIBRARY}"]}, f"engine/{FORBIDDEN_LIBRARY} is"),
        ({"files": ["kernels/ggml-quants.c"]}, "kernels/ggml-quants.c is"),
        ({"maps": ["/models/m.gguf", "/x/libggml-base.so.1"]}, "libggml-base.so.1 is"),
        ({"open_files": ["/opt/llama.cpp/m"]}, "llama.cpp/m is"),
        ({"maps": ["/lib/libc.so.6"]}, "has not opened the model"),
        ({"maps": []}, "no look"),
    ],
)
def test_what_must_not_be_mapped(changed: dict[str, Any], says: str) -> None:
    found = judged("G1-NO-LLAMACPP", "test_no_forbidden_library", **{**MADE_OF, **changed})
    assert says in found.message
    assert found.verdict == ("pass" if says == "none in" else "fail")


ENDED = {"code": 2, "stdout": "", "stderr": "no such option", "duration_s": 1.0, "timed_out": False}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "pass"),
        ({"code": 1}, "fail"),
        ({"stderr": " "}, "fail"),
        ({"timed_out": True}, "fail"),
        ({"stderr": "Traceback (most recent call last):\n"}, "fail"),
        ({"duration_s": 31.0}, "fail"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], verdict: str) -> None:
    found = judged("G1-START-FAIL", "test_bad_arguments[port]", exit={**ENDED, **changed})
    assert found.verdict == verdict, found.message
