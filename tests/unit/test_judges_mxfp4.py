"""The judge of MXFP4: what it passes, and how each of its rules fails."""

import base64
import struct
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.mxfp4 import PARTS
from harness.observation import Finding, Observation, Verdict

VALUES = [1.0, -100.0] * 4


def encoded(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


class Seen:
    """Five parts as the golden says; a test breaks one thing of them."""

    def __init__(self) -> None:
        about: dict[str, Any] = {"model_sha256": "ab", "token_ids": [0, 1, 2, 3]}
        part = {"width": 2, "float32_base64": encoded(VALUES)}
        self.golden: dict[str, Any] = {**about, "parts": {name: dict(part) for name in PARTS}}
        doubled = encoded([2 * value for value in VALUES])
        self.cases = [{**about, "part": name, "doubled_base64": doubled} for name in PARTS]

    def judged(self) -> Finding:
        facts = {"golden": self.golden, "probe": {"device": "cpu", "cases": self.cases}}
        seen = Observation("G3-MXFP4", "test_micro_goldens", 1, {}, facts)
        return JUDGES["G3-MXFP4"](seen, {"relative_error": 0.01})


def test_parts_within_the_bound_pass() -> None:
    seen = Seen()
    seen.cases[2]["doubled_base64"] = encoded([2.0, -201.0, *(2 * v for v in VALUES[2:])])
    found = seen.judged()
    assert found.verdict == Verdict.PASS
    assert found.numbers["router"] == pytest.approx(0.005)


@pytest.mark.parametrize("at", range(len(PARTS)))
@pytest.mark.parametrize("value", [-203.0, float("nan")])
def test_every_part_can_fail(at: int, value: float) -> None:
    seen = Seen()
    seen.cases[at]["doubled_base64"] = encoded([*(2 * v for v in VALUES[:-1]), value])
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert found.message.startswith(f"{PARTS[at]}: off by")


def test_numbers_that_are_not_all_there_fail() -> None:
    seen = Seen()
    seen.cases[0]["doubled_base64"] = encoded(VALUES[:-1])
    assert "7 numbers, wanted 8" in seen.judged().message
    seen.golden["parts"]["product"]["width"] = 3
    assert "not whole" in seen.judged().message
    seen.golden["token_ids"] = [0]
    assert "only 1 tokens" in seen.judged().message


@pytest.mark.parametrize(("name", "value"), [("model_sha256", "cd"), ("token_ids", [1] * 4)])
def test_parts_of_something_else_are_an_error(name: str, value: Any) -> None:
    seen = Seen()
    seen.cases[4][name] = value
    assert seen.judged().verdict == Verdict.ERROR


def test_a_missing_part_is_an_error() -> None:
    seen = Seen()
    seen.cases.pop()
    assert seen.judged().verdict == Verdict.ERROR
