"""The judge of malformed files: what it passes, and how each of its rules fails."""

from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.gguf import CLASSES, CONTROL
from harness.observation import Finding, Observation, Verdict


def case(name: str) -> dict[str, Any]:
    good = name == CONTROL
    return {
        "class": name,
        "opened": good,
        "error_type": None if good else "ModelLoadError",
        "code": None if good else "MODEL_LOAD_FAILED",
        "message": None if good else "file.gguf: wanted this, got that",
        "duration_ms": 1.0,
        "max_rss_bytes": 100,
    }


def judged(broken: str = "", **changed: Any) -> Finding:
    cases = [case(name) | (changed if name == broken else {}) for name in (CONTROL, *CLASSES)]
    if broken == "missing":
        cases.pop()
    seen = Observation("G2-GGUF", "test_malformed_files", 1, {}, {"probe": {"cases": cases}})
    return JUDGES["G2-GGUF"](seen, {"max_refusal_rss_bytes": 200})


def test_refusals_pass() -> None:
    assert judged().verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        (CONTROL, {"opened": False, "message": "no"}, "well-formed: not opened: no"),
        ("empty", {"opened": True}, "empty: opened"),
        ("huge-string", {"code": None, "error_type": "MemoryError"}, "huge-string: MemoryError"),
        ("empty", {"message": ""}, "nothing is said"),
        ("empty", {"message": "file.gguf: a\nb"}, "2 lines are said"),
        ("empty", {"message": "wanted this"}, "the file is not named"),
        ("huge-key-count", {"max_rss_bytes": 201}, "201 bytes resident"),
        ("huge-key-count", {"duration_ms": 2001.0}, "took 2001 ms"),
        ("huge-key-count", {"duration_ms": None}, "duration_ms is no number"),
    ],
)
def test_each_rule_can_fail(name: str, changed: dict[str, Any], said: str) -> None:
    found = judged(name, **changed)
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def test_a_class_that_was_not_tried_is_an_error() -> None:
    assert judged("missing").verdict == Verdict.ERROR
