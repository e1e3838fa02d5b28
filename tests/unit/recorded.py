"""Exchanges made by hand, for judges' tests: what the transport would have recorded."""

import json
from collections.abc import Sequence
from typing import Any

from harness.observation import Chunk, Exchange

MS = 1_000_000
SSE = (("Content-Type", "text/event-stream"),)
Event = tuple[str, dict[str, Any]]


def exchange(
    path: str = "/health",
    answer: Any = None,
    *,
    sent: Any = None,
    status: int | None = 200,
    at_ms: float = 0,
    took_ms: float = 2,
    headers: Sequence[tuple[str, str]] = (),
    request_headers: Sequence[tuple[str, str]] = (),
) -> Exchange:
    start = int(at_ms * MS)
    end = start + int(took_ms * MS)
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return Exchange(
        method="POST" if sent is not None else "GET",
        path=path,
        request_headers=tuple(request_headers),
        request_body=b"" if sent is None else json.dumps(sent).encode(),
        sent_ns=start,
        status=status,
        response_headers=tuple(headers),
        head_ns=end,
        chunks=(Chunk(end, content),),
        closed_ns=end,
    )


def events(texts: Sequence[str], sent: dict[str, Any], **changed: Any) -> list[Event]:
    ids = changed.get("ids") or [100 + i for i in range(len(texts))]
    started = {
        "job_id": sent.get("job_id", "j"),
        "model": "m",
        "started_at": "2026-01-01T00:00:00Z",
        "seed": sent.get("seed", 1),
        "prompt_tokens": 3,
        "cached_tokens": 0,
        **changed.get("started", {}),
    }
    tokens = [{"t": t, "i": i, "id": ids[i]} for i, t in enumerate(texts)]
    metrics = {"prefill_ms": 1.0, "decode_ms": 2.0, "tokens_out": len(texts), "kv_cache_bytes": 64}
    end = {
        "tokens_out": len(texts),
        "decode_time_ms": 2.0,
        "finish_reason": changed.get("reason", "length"),
        "dropped_bytes": 0,
    }
    return [
        ("started", started),
        *(("token", token) for token in tokens),
        ("metrics", metrics),
        ("end", end),
    ]


def stream(told: Sequence[Event], sent: dict[str, Any], at_ms: float = 0) -> Exchange:
    start = int(at_ms * MS)
    chunks = tuple(
        Chunk(start + (i + 1) * MS, f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode())
        for i, (name, fields) in enumerate(told)
    )
    return Exchange(
        method="POST",
        path="/execute",
        request_headers=(),
        request_body=json.dumps(sent).encode(),
        sent_ns=start,
        status=200,
        response_headers=SSE,
        head_ns=start,
        chunks=chunks,
        closed_ns=start + (len(told) + 1) * MS,
    )


def run(texts: Sequence[str], at_ms: float = 0, **sent: Any) -> Exchange:
    changed = {k: sent.pop(k) for k in ("ids", "started", "reason") if k in sent}
    request = {"job_id": f"job at {at_ms}", "prompt": "p", "max_tokens": 8, "seed": 1, **sent}
    return stream(events(texts, request, **changed), request, at_ms)


def usage(prompt: int, completion: int) -> dict[str, int]:
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def in_one_piece(text: str, tokens: int, **sent: Any) -> Exchange:
    answer = {"choices": [{"text": text}], "usage": usage(3, tokens)}
    return exchange("/v1/completions", answer, sent=sent)
