"""The judge of block formats: what it passes, and how each of its rules fails."""

import base64
import copy
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Finding, Observation, Verdict

NAN, OTHER_NAN = 0x7FC00000, 0xFFC00001
CHECK = "G2-QUANT-Q8_0"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def words(count: int, nan: int = NAN) -> bytes:
    return struct.pack(f"<{count}I", nan, *range(count - 1))


def floats(*values: float) -> str:
    return encoded(struct.pack(f"<{len(values)}f", *values))


class Blocks:
    """Four inputs that dequantize as the golden says; a test breaks one thing of it."""

    test = "test_dequantization[Q8_0]"

    def __init__(self) -> None:
        inputs = ("random", "zeros", "ones", "half-one")
        self.cases: list[dict[str, Any]] = [
            {
                "type": "Q8_0",
                "input": name,
                "blocks_base64": encoded(name.encode()),
                "float32_base64": encoded(words(250)),
            }
            for name in inputs
        ]
        self.golden: list[dict[str, Any]] = [
            {
                "input": name,
                "blocks_sha256": digest(name.encode()),
                "values": 250,
                "float32_sha256": digest(words(250)),
            }
            for name in inputs
        ]

    def judged(self) -> Finding:
        facts = {"cases": self.cases, "golden": {"blocks": self.golden}}
        return JUDGES[CHECK](Observation(CHECK, self.test, 1, {}, facts), {})


def test_the_same_bits_pass_whatever_the_nan() -> None:
    seen = Blocks()
    seen.cases[0]["float32_base64"] = encoded(words(250, OTHER_NAN))
    assert seen.judged().verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (words(250)[:-4] + struct.pack("<I", 9), "not the oracle's"),
        (struct.pack("<I", 0x7F800000) + words(250)[4:], "not the oracle's"),
        (words(249), "249, wanted 250 values"),
    ],
)
def test_other_bits_fail(content: bytes, said: str) -> None:
    seen = Blocks()
    seen.cases[1]["float32_base64"] = encoded(content)
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def test_a_golden_of_little_fails() -> None:
    seen = Blocks()
    seen.golden.pop()
    assert "only 3 inputs" in seen.judged().message
    seen = Blocks()
    seen.golden[0]["values"] = 249
    assert "too few values" in seen.judged().message


@pytest.mark.parametrize("broken", ["missing", "blocks", "type", "test"])
def test_other_blocks_than_the_goldens_are_an_error(broken: str) -> None:
    seen = Blocks()
    if broken == "missing":
        seen.cases.pop()
    elif broken == "blocks":
        seen.cases[0]["blocks_base64"] = encoded(b"other")
    elif broken == "type":
        seen.cases[0]["type"] = "Q4_0"
    else:
        seen.test = "test_dequantization[Q4_0]"
    assert seen.judged().verdict == Verdict.ERROR


class Product:
    """Two inputs and two rows, as the golden says; a test breaks one thing of it."""

    def __init__(self) -> None:
        self.case: dict[str, Any] = {
            "type": "Q8_0", "matrix_sha256": "m", "inputs_sha256": "i",
            "together_base64": floats(1.0, 100.5, 3.0, -50.0), "alone_base64": floats(0.5, 100.0),
        }  # fmt: skip
        self.golden: dict[str, Any] = {
            "matrix_sha256": "m", "inputs_sha256": "i", "rows": 2, "inputs": 2,
            "float32_base64": floats(1.0, 100.0, 3.0, -50.0),
        }  # fmt: skip
        self.cases = [self.case]

    def judged(self) -> Finding:
        facts = {"cases": self.cases, "golden": {"product": self.golden}, "device": "cpu"}
        seen = Observation(CHECK, "test_product[Q8_0]", 1, {}, copy.deepcopy(facts))
        return JUDGES[CHECK](seen, {"product_relative_error": 0.01})


def test_products_within_the_bound_pass() -> None:
    found = Product().judged()
    assert found.verdict == Verdict.PASS
    assert found.numbers["worst"] == 0.005


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("together_base64", floats(1.0, 100.0, 3.6, -50.0), "input 1: off by 0.012"),
        ("together_base64", floats(1.0, 100.0, float("nan"), -50.0), "not finite"),
        ("together_base64", floats(1.0, 100.0), "2, wanted 4 products"),
        ("alone_base64", floats(1.0, 98.0), "alone: off by 0.02"),
        ("alone_base64", floats(1.0), "1 products alone"),
    ],
)
def test_each_rule_of_the_product_can_fail(name: str, value: str, said: str) -> None:
    seen = Product()
    seen.case[name] = value
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def test_a_golden_that_shows_nothing_fails() -> None:
    seen = Product()
    seen.golden["float32_base64"] = floats(0.0, 0.0, 0.0, 0.0)
    assert "the golden is zero" in seen.judged().message
    seen.golden["inputs"] = 3
    assert "not whole" in seen.judged().message
    seen.cases = []
    assert "0 products" in seen.judged().message


@pytest.mark.parametrize("name", ["matrix_sha256", "inputs_sha256", "type"])
def test_another_product_is_an_error(name: str) -> None:
    seen = Product()
    seen.case[name] = "other"
    assert seen.judged().verdict == Verdict.ERROR


def test_goldens_are_what_the_gguf_package_says(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from tests.goldens import make_quant_goldens

    made = tmp_path / "quants.json"
    make_quant_goldens.main(str(made))
    stored = Path(__file__).parents[2] / "suites/goldens/quants.json"
    assert json.loads(made.read_text())["types"] == json.loads(stored.read_text())["types"]
