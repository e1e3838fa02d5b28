"""Judges of health, execute and refusals: what they pass, and how each rule fails."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Chunk, Exchange, Finding, Observation
from tests.unit.recorded import MS, exchange, run
from tests.unit.test_judges_start import HEALTH, SHA256


def judged(check: str, test: str, limits: dict[str, float] | None = None, **named: Any) -> Finding:
    seen = {k: _many(v) for k, v in named.items() if _many(v)}
    facts = {k: v for k, v in named.items() if k not in seen}
    return JUDGES[check](Observation(check, test, 1, seen, facts), limits or {})


def _many(value: Any) -> tuple[Exchange, ...]:
    if isinstance(value, Exchange):
        return (value,)
    return tuple(value) if isinstance(value, list) and isinstance(value[0], Exchange) else ()


def health(at_ms: float, took_ms: float = 2, **changed: Any) -> Exchange:
    return exchange("/health", {**HEALTH, **changed}, at_ms=at_ms, took_ms=took_ms)


JOB = run(["a"] * 100, 0)
PROBES = [health(n * 3) for n in range(1, 31)]


@pytest.mark.parametrize(
    ("idle", "probes", "says"),
    [
        (health(0), PROBES, "30 probes"),
        (health(0), PROBES[:19], "19 probes during a job"),
        (health(0), [health(200 + n) for n in range(30)], "0 probes during a job"),
        (health(0), [health(n, took_ms=11) for n in range(1, 31)], "11.0 ms p99"),
        (health(0), [*PROBES, health(9, status="unhealthy")], "status is 'unhealthy'"),
        (health(0, vocab_size="many"), PROBES, "vocab_size is no count"),
        (health(0, kv_dtype=""), PROBES, "kv_dtype"),
        (health(0, vram_bytes_used=0), PROBES, "vram_bytes_used is 0"),
        (health(0, tokenizer_kind="words"), PROBES, "tokenizer_kind"),
        (health(0, model_sha256="cd" * 32), PROBES, "model_sha256"),
    ],
)
def test_health_while_a_job_runs(idle: Exchange, probes: list[Exchange], says: str) -> None:
    limits = {"min_probes": 20, "p99_ms": 10.0}
    named = {"idle": idle, "jobs": [JOB], "probes": probes, "model_sha256": SHA256}
    found = judged("G1-HTTP-HEALTH", "test_health_while_a_job_runs", limits, **named)
    assert says in found.message
    assert found.verdict == ("pass" if says == "30 probes" else "fail")


def all_at_once(seen: Exchange) -> Exchange:
    body = b"".join(chunk.content for chunk in seen.chunks)
    return replace(seen, chunks=(Chunk(seen.chunks[-1].arrival_ns, body),))


WORDS = ["Once", " upon", " a", " time"]


@pytest.mark.parametrize(
    ("execute", "prompt_ids", "text", "ids", "says"),
    [
        (run(WORDS), [1, 2, 3], "Once upon a time", None, "4 tokens streamed"),
        (run([" ", "\n"]), [1, 2, 3], " \n", None, "is empty"),
        (run(WORDS, max_tokens=3), [1, 2, 3], "Once upon a time", None, "at most 3"),
        (all_at_once(run(WORDS)), [1, 2, 3], "Once upon a time", None, "not streamed"),
        (run(WORDS), [1, 2], "Once upon a time", None, "3 prompt_tokens"),
        (run(WORDS), [1, 2, 3], "Once upon a dime", None, "not what its ids say"),
        (run(WORDS), [1, 2, 3], "Once upon a time", [1], "about other tokens"),
    ],
)
def test_execute(
    execute: Exchange, prompt_ids: list[int], text: str, ids: list[int] | None, says: str
) -> None:
    asked = ids if ids is not None else [100 + n for n in range(execute.body.count(b'"t":'))]
    found = judged(
        "G1-HTTP-EXECUTE",
        "test_execute_streams",
        execute=execute,
        tokenize=exchange("/tokenize", {"ids": prompt_ids}, sent={}),
        detokenize=exchange("/detokenize", {"text": text}, sent={"ids": asked}),
    )
    assert says in found.message
    assert found.verdict == ("pass" if says == "4 tokens streamed" else "fail")


def in_pieces(seen: Exchange, pieces: int, took_ms: float) -> Exchange:
    """The same events in so many pieces, the last of which comes after `took_ms`."""
    parts = [seen.chunks[len(seen.chunks) * i // pieces : len(seen.chunks) * (i + 1) // pieces]
             for i in range(pieces)]  # fmt: skip
    chunks = [
        Chunk(
            seen.sent_ns + int(took_ms * MS * (i + 1) / pieces), b"".join(c.content for c in part)
        )
        for i, part in enumerate(parts)
    ]
    return replace(seen, chunks=tuple(chunks))


@pytest.mark.parametrize(
    ("pieces", "took_ms", "streamed"),
    [
        (13, 100, True),
        (12, 100, False),
        (12, 10, True),
        (5, 10, True),
        (4, 10, False),
        (2, 1, True),
        (1, 1, False),
    ],
)
def test_a_stream_has_as_many_pieces_as_a_busy_client_can_read(
    pieces: int, took_ms: float, streamed: bool
) -> None:
    told = run([" a"] * 24, max_tokens=24)
    found = judged(
        "G1-HTTP-EXECUTE",
        "test_execute_streams",
        execute=in_pieces(told, pieces, took_ms),
        tokenize=exchange("/tokenize", {"ids": [1, 2, 3]}, sent={}),
        detokenize=exchange(
            "/detokenize", {"text": " a" * 24}, sent={"ids": [100 + n for n in range(24)]}
        ),
    )
    assert (found.verdict == "pass") is streamed, found.message
    assert streamed or "not streamed" in found.message


def sent_at(seen: Exchange, at_ms: float) -> Exchange:
    return replace(seen, sent_ns=int(at_ms * MS))


@pytest.mark.parametrize(
    ("jobs", "verdict"),
    [
        ([run(["a"], 0), sent_at(run(["a"], 10), 1)], "pass"),
        ([run(["a"], 0)], "fail"),
        ([run(["a"], 0), run(["a"], 100)], "fail"),
        ([run(["a"] * 9, 0), run(["a"] * 9, 2)], "fail"),
        ([run(["a"], 0), run([], 1)], "fail"),
    ],
)
def test_one_job_at_a_time(jobs: list[Exchange], verdict: str) -> None:
    found = judged("G1-HTTP-EXECUTE", "test_one_job_at_a_time", jobs=jobs)
    assert found.verdict == verdict, found.message


def error(code: str, status: int, **changed: Any) -> Exchange:
    told = {"code": code, "message": "no", "retriable": False, **changed}
    return exchange("/execute", told, sent={"job_id": "twin"}, status=status)


REFUSED: dict[str, Exchange] = {
    "invalid": error("INVALID_REQUEST", 400, field="max_tokens"),
    "no_route": error("NOT_FOUND", 404),
    "wrong_method": error("METHOD_NOT_ALLOWED", 405),
    "too_large": error("BODY_TOO_LARGE", 413),
    "unknown_job": error("UNKNOWN_JOB", 404),
}


@pytest.mark.parametrize(
    ("name", "seen", "verdict"),
    [
        ("invalid", REFUSED["invalid"], "pass"),
        ("invalid", error("INVALID_REQUEST", 400, field="seed"), "fail"),
        ("invalid", error("INVALID_REQUEST", 400, field="max_tokens", retriable=True), "fail"),
        ("invalid", error("INVALID_REQUEST", 422, field="max_tokens"), "fail"),
        ("invalid", error("BAD_REQUEST", 400, field="max_tokens"), "fail"),
        ("no_route", error("NOT_FOUND", 200), "fail"),
        ("wrong_method", error("METHOD_NOT_ALLOWED", 404), "fail"),
        ("too_large", error("BODY_TOO_LARGE", 413, message=7), "fail"),
        ("too_large", exchange("/execute", b"too large", sent={}, status=413), "fail"),
        ("unknown_job", error("", 404), "fail"),
    ],
)
def test_refusals(name: str, seen: Exchange, verdict: str) -> None:
    found = judged("G1-ERRORS", "test_refusals", **{**REFUSED, name: seen})
    assert found.verdict == verdict, found.message


TWIN = run(["a"], 0, job_id="twin")


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "pass"),
        ({"second": error("DUPLICATE_JOB", 200)}, "fail"),
        ({"second": run(["b"], 1, job_id="twin")}, "fail"),
        ({"first": run(["a"], 0, job_id="other")}, "fail"),
        ({"first": replace(TWIN, chunks=TWIN.chunks[:-1])}, "fail"),
        ({"afterwards": error("DUPLICATE_JOB", 409)}, "fail"),
    ],
)
def test_a_duplicate_job(changed: dict[str, Exchange], verdict: str) -> None:
    seen = {"first": TWIN, "second": error("DUPLICATE_JOB", 409), "afterwards": run(["a"], 9)}
    found = judged("G1-ERRORS", "test_duplicate_job", **{**seen, **changed})
    assert found.verdict == verdict, found.message


def kv_run(positions: int, kv_bytes: int, at_ms: float) -> Exchange:
    seen = run(["a"], at_ms, started={"prompt_tokens": positions})
    told = (c.content.replace(b'"kv_cache_bytes": 64', b'"kv_cache_bytes": %d' % kv_bytes)
            for c in seen.chunks)  # fmt: skip
    chunks = tuple(Chunk(c.arrival_ns, new) for c, new in zip(seen.chunks, told, strict=True))
    return replace(seen, chunks=chunks)


def grown(sizes: Sequence[tuple[int, int]]) -> list[Exchange]:
    return [kv_run(positions, size, 10 * n) for n, (positions, size) in enumerate(sizes)]


GROWN = grown([(9, 64), (90, 128), (400, 512)])


@pytest.mark.parametrize(
    ("runs", "left", "looked_ms", "says"),
    [
        (GROWN, 0, 40, "KV from 64 to 512"),
        (grown([(9, 64), (90, 64), (400, 64)]), 0, 40, "does not grow"),
        (grown([(9, 64), (90, 512), (400, 128)]), 0, 40, "does not grow"),
        (grown([(9, 0), (90, 128), (400, 512)]), 0, 40, "no KV cache"),
        (grown([(9, 64), (10, 128), (12, 512)]), 0, 40, "nearly the same length"),
        (GROWN, 65, 40, "65 bytes are not back"),
        (GROWN, 0, 9000, "looked at only after"),
    ],
)
def test_kv_grows_and_is_freed(
    runs: list[Exchange], left: int, looked_ms: float, says: str
) -> None:
    found = judged(
        "G1-KV",
        "test_kv_grows",
        {"free_s": 5.0},
        before=health(0, vram_bytes_used=1000),
        runs=runs,
        after=health(looked_ms, vram_bytes_used=1000 + left),
    )
    assert says in found.message
    assert found.verdict == ("pass" if says.startswith("KV from") else "fail")


OOM = exchange(
    "/execute",
    b'event: error\ndata: {"code": "VRAM_OOM", "message": "no", "retriable": true}\n\n',
    sent={"job_id": "j"},
    headers=[("Content-Type", "text/event-stream")],
)


@pytest.mark.parametrize(
    ("budget", "changed", "verdict"),
    [
        (64, {}, "pass"),
        (63, {}, "fail"),
        (64, {"fitting": kv_run(3, 0, 0)}, "fail"),
        (64, {"exceeding": run(["a"], 5)}, "fail"),
        (64, {"afterwards": OOM}, "fail"),
    ],
)
def test_a_kv_budget_holds(budget: int, changed: dict[str, Exchange], verdict: str) -> None:
    seen = {"fitting": kv_run(3, 64, 0), "exceeding": OOM, "afterwards": run(["a"], 9)}
    found = judged("G1-KV", "test_kv_budget", budget_bytes=budget, **{**seen, **changed})
    assert found.verdict == verdict, found.message
