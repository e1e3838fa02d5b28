"""The judge of malformed model files: each class is refused in one line, quickly, cheaply."""

from collections.abc import Mapping
from typing import Final

from harness.judges.rule import Unseen, fact, fields, judge, limit, need, passed
from harness.observation import Finding, Json, Judge, Limits, Observation

CONTROL: Final = "well-formed"
CLASSES: Final = (
    "empty", "not-gguf", "version-1", "version-99", "big-endian", "cut-in-header",
    "cut-in-metadata", "cut-in-tensor-table", "cut-in-tensor-data", "huge-tensor-count",
    "huge-key-count", "huge-string", "unknown-value-type", "key-not-utf8", "duplicate-key",
    "duplicate-tensor", "unknown-tensor-type", "unsupported-tensor-type", "too-many-dimensions",
    "zero-dimension", "overflowing-shape", "offset-past-end", "offset-misaligned",
    "overlapping-tensors", "bad-alignment",
)  # fmt: skip
MAX_REFUSAL_MS: Final = 2000.0
"""A refusal reads a table of a few hundred bytes: this is for a machine that stands still."""

_CASE: Final = {"opened": "boolean", "duration_ms": "number", "max_rss_bytes": "count"}


@judge
def judge_gguf(observation: Observation, limits: Limits) -> Finding:
    """The well-formed file opens; every other one is a MODEL_LOAD_FAILED of one line."""
    cases = {case["class"]: case for case in fact(observation, "probe")["cases"]}
    missing = [name for name in (CONTROL, *CLASSES) if name not in cases]
    if missing:
        raise Unseen(f"no file of the class {missing[0]} was tried")
    for name, case in cases.items():
        fields(case, _CASE, name)
    control = cases[CONTROL]
    need(control["opened"], f"{CONTROL}: not opened: {control['message']}")
    for name in CLASSES:
        _refused(name, cases[name])
    most_bytes = max(case["max_rss_bytes"] for case in cases.values())
    bound = limit(limits, "max_refusal_rss_bytes")
    need(most_bytes <= bound, f"{most_bytes} bytes resident while refusing, at most {bound:g}")
    slowest = max(case["duration_ms"] for case in cases.values())
    need(slowest <= MAX_REFUSAL_MS, f"a refusal took {slowest:.0f} ms")
    return passed(
        f"{len(CLASSES)} malformed classes refused in one line each",
        max_rss_bytes=most_bytes,
        slowest_ms=slowest,
    )


def _refused(name: str, case: Mapping[str, Json]) -> None:
    need(not case["opened"], f"{name}: opened")
    need(
        case["code"] == "MODEL_LOAD_FAILED",
        f"{name}: {case['error_type']} with code {case['code']}, wanted MODEL_LOAD_FAILED",
    )
    message = case["message"]
    need(isinstance(message, str) and bool(message), f"{name}: nothing is said")
    need(len(message.splitlines()) == 1, f"{name}: {len(message.splitlines())} lines are said")
    need(".gguf" in message, f"{name}: the file is not named: {message}")


JUDGES: Final[Mapping[str, Judge]] = {"G2-GGUF": judge_gguf}
