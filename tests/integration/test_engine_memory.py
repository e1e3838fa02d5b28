"""Budgets of memory: kept, told when exhausted, and the process as good as new afterwards."""

import random
from pathlib import Path
from typing import Any

import psutil

from tests.integration.engine_process import EngineProcess, launched

MIB = 1 << 20
LIMIT_MB = 106
"""Weights and workspace of the default model, and a few pages of 64 positions."""
ALLOWED_BEYOND = 300 * MIB
N_REQUESTS = 200
PROBE: dict[str, Any] = {"prompt": "The sky is", "max_tokens": 4, "logprobs": 2}


def answer(engine: EngineProcess) -> list[dict[str, Any]]:
    return [fields for name, fields in engine.execute(**PROBE) if name == "token"]


def status(engine: EngineProcess) -> str:
    return str(engine.client.get("/health").json()["status"])


def room(engine: EngineProcess) -> int:
    """Positions for which the budget has pages, learnt from the error of a prompt too long."""
    ids = list(range(100, 1100))
    last = engine.execute(prompt=None, prompt_ids=ids, max_tokens=1)[-1]
    assert (last[0], last[1]["code"]) == ("error", "VRAM_OOM")
    pages = int(last[1]["message"].partition("(")[2].partition(" pages")[0])
    assert 2 <= pages < 10
    return 64 * pages


def exhaust(engine: EngineProcess, draw: random.Random, positions: int, *, prefill: bool) -> None:
    """One request that outgrows the budget, in its prompt or some tokens later."""
    n_prompt = positions + 10 if prefill else positions - draw.randint(2, 6)
    ids = [draw.randrange(3, 49_000) for _ in range(n_prompt)]

    events = engine.execute(prompt=None, prompt_ids=ids, max_tokens=60, repetition_penalty=2.0)
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "VRAM_OOM"), events[-1]
    assert events[-1][1]["retriable"] is True
    assert "bytes required" in events[-1][1]["message"]
    assert prefill is not any(name == "token" for name, _ in events)
    assert [name for name, _ in events].count("metrics") == 0


def test_two_hundred_requests_with_failures_among_them_stay_inside_the_budget(
    tmp_path: Path,
) -> None:
    draw = random.Random(7)
    with launched(tmp_path, "--memory-limit-mb", str(LIMIT_MB)) as engine:
        process = psutil.Process(engine.process.pid)
        before, positions = answer(engine), room(engine)
        seen: list[int] = []
        for index in range(N_REQUESTS):
            if index % 5 == 0:
                exhaust(engine, draw, positions, prefill=index % 10 == 0)
                assert status(engine) == "unhealthy"
                health = engine.client.get("/health").json()
                assert health["last_error"]["code"] == "VRAM_OOM"
                assert health["kv_bytes"] == 0
            else:
                assert answer(engine) == before
                assert status(engine) == "healthy"
            seen.append(process.memory_info().rss)
        assert engine.process.poll() is None
        assert max(seen) <= LIMIT_MB * MIB + ALLOWED_BEYOND
        assert max(seen[-50:]) <= max(seen[:50]) + 8 * MIB
        failures = 'worker_requests_total{outcome="out_of_memory"} 41.0'
        assert failures in engine.client.get("/metrics").text
        health = engine.client.get("/health").json()
        assert health["vram_bytes_used"] <= health["memory_limit_bytes"] == LIMIT_MB * MIB
        assert len(engine.events("startup")) == 1
        assert engine.stop() == 0


def test_the_most_memory_ever_used_is_weights_kv_and_little_more(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        ids = [5 + i % 40_000 for i in range(900)]
        metrics = engine.execute(prompt=None, prompt_ids=ids, max_tokens=4, logprobs=20)[-2][1]
        health = engine.client.get("/health").json()
        peak = _peak_bytes(engine.process.pid)
    assert metrics["kv_cache_bytes"] > 30 * MIB
    assert peak <= health["weights_bytes"] + metrics["kv_cache_bytes"] + 350 * MIB


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def test_the_kv_budget_alone_is_kept_too(tmp_path: Path) -> None:
    with launched(tmp_path, "--kv-cache-mb", "8") as engine:
        before = answer(engine)
        assert room(engine) == 128
        assert status(engine) == "unhealthy"
        assert answer(engine) == before
        assert status(engine) == "healthy"


def test_pages_kept_for_a_prefix_give_way_to_a_request_that_needs_them(tmp_path: Path) -> None:
    with launched(tmp_path, "--kv-cache-mb", "12") as engine:
        ids = list(range(100, 240))
        for shift in range(6):
            shifted = [i + 200 * shift for i in ids]
            done = engine.execute(prompt=None, prompt_ids=shifted, cache_prompt=True)
            assert done[-1][0] == "end"
        assert engine.client.get("/health").json()["kv_bytes"] <= 12 * MIB


def test_scoring_that_outgrows_the_budget_is_an_error_and_the_next_is_served(
    tmp_path: Path,
) -> None:
    with launched(tmp_path, "--kv-cache-mb", "6") as engine:
        body = {"prompt_ids": list(range(100, 500)), "completion_ids": [5, 6]}
        refused = engine.client.post("/score", json=body)
        assert (refused.status_code, refused.json()["code"]) == (500, "VRAM_OOM")
        good = engine.client.post("/score", json={"prompt_ids": [7], "completion_ids": [5, 6]})
        assert [score["token_id"] for score in good.json()["scores"]] == [5, 6]
        assert status(engine) == "healthy"
