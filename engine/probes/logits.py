"""Logits of a model file on given token ids: in one prefill, and token by token."""

import base64
import hashlib
from typing import Any

import numpy as np

from engine.backends import LoadOptions
from engine.errors import InvalidRequest
from engine.loading import load_model
from engine.probe import Case, ProbeOptions

_TOP = 10


def cases(options: ProbeOptions) -> list[Case]:
    """One case a position; those in `rows` carry all their logits as base64 float32."""
    if options.model is None or not options.token_ids:
        raise InvalidRequest("model", "probe logits needs --model and --ids")
    model = load_model(options.model, LoadOptions(device=options.device))
    try:
        rows = np.asarray(model.runtime.logits(options.token_ids, _go_on))
    finally:
        model.close()
    return [
        _case(position, token_id, row, full=position in options.rows)
        for position, (token_id, row) in enumerate(zip(options.token_ids, rows, strict=True))
    ]


def _case(position: int, token_id: int, row: Any, *, full: bool) -> Case:
    best = np.argsort(-row, kind="stable")[:_TOP]
    content = np.asarray(row, "<f4").tobytes()
    case: Case = {
        "position": position,
        "token_id": token_id,
        "n_logits": int(row.size),
        "n_finite": int(np.isfinite(row).sum()),
        "min": float(row.min()),
        "max": float(row.max()),
        "mean": float(row.mean(dtype=np.float64)),
        "top": [[int(one), float(row[one])] for one in best],
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return case | ({"float32_base64": base64.b64encode(content).decode()} if full else {})


def _go_on() -> None:
    return
