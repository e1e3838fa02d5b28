"""Gate 2: every block format, dequantized and multiplied, against goldens of the `gguf` package."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.launch import Launcher, LaunchSpec
from harness.observation import Observe
from suites.probes import probe

GOLDENS = Path(__file__).parent / "goldens" / "quants.json"
TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4",
)  # fmt: skip
EACH_TYPE = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.check(f"G2-QUANT-{name}")) for name in TYPES]
)

Printed = dict[str, Any]


@pytest.fixture(scope="module")
def goldens() -> Printed:
    """The goldens of all types."""
    made: Printed = json.loads(GOLDENS.read_text(encoding="utf-8"))
    return made


@pytest.fixture(scope="module")
def dequantized(launcher: Launcher, launch_spec: LaunchSpec, goldens: Printed) -> Printed:
    """The probe `dequant` with the goldens' seed."""
    return probe(launcher, launch_spec, "dequant", "--seed", str(goldens["seed"]))


@pytest.fixture(scope="module")
def products(launcher: Launcher, launch_spec: LaunchSpec, goldens: Printed) -> Printed:
    """The probe `products` with the goldens' seed."""
    return probe(launcher, launch_spec, "products", "--seed", str(goldens["seed"]))


@EACH_TYPE
def test_dequantization(
    name: str, dequantized: Printed, goldens: Printed, observe: Observe
) -> None:
    cases = [case for case in dequantized["cases"] if case["type"] == name]
    observe(cases=cases, golden=goldens["types"][name])


@EACH_TYPE
def test_product(name: str, products: Printed, goldens: Printed, observe: Observe) -> None:
    cases = [case for case in products["cases"] if case["type"] == name]
    observe(cases=cases, golden=goldens["types"][name], device=products["device"])
