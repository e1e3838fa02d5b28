"""Each part of a layer in MXFP4 agrees with float64; the bound is 1 % of the largest number."""

import pytest

from engine.errors import InvalidRequest
from engine.probe import Case, ProbeOptions
from engine.probes import mxfp4

BOUND = 0.01
FLOAT_BOUND = 1e-3
"""What the engine's own notebook promises of quantized products."""
PARTS = ["gemm", "attention", "router and experts", "head"]


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case["part"]: case for case in mxfp4.cases(ProbeOptions(seed=3))}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_agrees_with_float64(cases: dict[str, Case], part: str) -> None:
    case = cases[part]
    assert case["max_reference"] > 1
    assert case["max_error"] <= FLOAT_BOUND * case["max_reference"] < BOUND * case["max_reference"]
    assert 0 < case["rms_error"] <= FLOAT_BOUND * case["rms_reference"]


def test_every_matrix_but_the_router_is_mxfp4(cases: dict[str, Case]) -> None:
    assert list(cases) == PARTS
    types = {name: kind for case in cases.values() for name, kind in case["types"].items()}
    assert types.pop("blk.0.ffn_gate_inp.weight") == "F32"
    assert set(types.values()) == {"MXFP4"}
    assert len(types) == 8


def test_another_device_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="--device cpu"):
        mxfp4.cases(ProbeOptions(device="cuda:0"))
