"""Judges of block formats: dequantization bit for bit, products within their bound."""

import base64
import hashlib
import math
import struct
from collections.abc import Mapping
from typing import Final

from harness.judges.rule import Unseen, by_test, fact, limit, need, passed
from harness.observation import Finding, Json, Judge, Limits, Observation

TYPES: Final = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4",
)  # fmt: skip
MIN_INPUTS: Final = 4
MIN_VALUES: Final = 1000
_NAN: Final = 0x7FC00000


def _dequantization(observation: Observation, limits: Limits) -> Finding:
    """Random and adversarial blocks give the oracle's float32, every NaN being one."""
    name, golden = _type(observation), fact(observation, "golden")["blocks"]
    cases = {case["input"]: case for case in fact(observation, "cases")}
    need(len(golden) >= MIN_INPUTS, f"{name}: only {len(golden)} inputs")
    need(sum(one["values"] for one in golden) >= MIN_VALUES, f"{name}: too few values")
    values = 0
    for wanted in golden:
        place = f"{name}, {wanted['input']}"
        if wanted["input"] not in cases:
            raise Unseen(f"{place}: not dequantized")
        values += _same_bits(wanted, cases[wanted["input"]], name, place)
    return passed(f"{name}: {values} values of {len(golden)} inputs, bit for bit", values=values)


def _same_bits(wanted: Mapping[str, Json], case: Mapping[str, Json], name: str, place: str) -> int:
    if case["type"] != name or _sha256(case["blocks_base64"]) != wanted["blocks_sha256"]:
        raise Unseen(f"{place}: other blocks than the golden's were dequantized")
    words = _words(case["float32_base64"])
    need(len(words) == wanted["values"], f"{place}: {len(words)}, wanted {wanted['values']} values")
    plain = [_NAN if word & 0x7FFFFFFF > 0x7F800000 else word for word in words]
    digest = hashlib.sha256(struct.pack(f"<{len(plain)}I", *plain)).hexdigest()
    need(digest == wanted["float32_sha256"], f"{place}: the float32 are not the oracle's")
    return len(words)


def _product(observation: Observation, limits: Limits) -> Finding:
    """All inputs together, and the first alone: within the bound of the largest product."""
    name, golden = _type(observation), fact(observation, "golden")["product"]
    cases = fact(observation, "cases")
    need(len(cases) == 1, f"{name}: {len(cases)} products, wanted one")
    case, rows = cases[0], golden["rows"]
    for digest in ("matrix_sha256", "inputs_sha256"):
        if case["type"] != name or case[digest] != golden[digest]:
            raise Unseen(f"{name}: {digest} is not the golden's")
    wanted = _floats(golden["float32_base64"])
    need(len(wanted) == rows * golden["inputs"], f"{name}: the golden is not whole")
    together, alone = (_floats(case[f"{how}_base64"]) for how in ("together", "alone"))
    need(len(together) == len(wanted), f"{name}: {len(together)}, wanted {len(wanted)} products")
    need(len(alone) == rows, f"{name}: {len(alone)} products alone, wanted {rows}")
    bound = limit(limits, "product_relative_error")
    errors = [_error(alone, wanted[:rows], bound, f"{name}, alone")]
    for at in range(0, len(wanted), rows):
        place = f"{name}, input {at // rows}"
        errors.append(_error(together[at : at + rows], wanted[at : at + rows], bound, place))
    return passed(
        f"{name}: {len(errors)} products within {max(errors):.2g} of their largest element",
        worst=max(errors),
        device=fact(observation, "device"),
    )


def _error(got: tuple[float, ...], wanted: tuple[float, ...], bound: float, place: str) -> float:
    need(all(map(math.isfinite, got)), f"{place}: a product is not finite")
    largest = max(map(abs, wanted))
    need(largest > 0, f"{place}: the golden is zero")
    error = max(abs(a - b) for a, b in zip(got, wanted, strict=True)) / largest
    need(error <= bound, f"{place}: off by {error:.2g} of the largest element, at most {bound:g}")
    return error


def _type(observation: Observation) -> str:
    name = observation.test.partition("[")[2].removesuffix("]")
    if observation.check != f"G2-QUANT-{name}":
        raise Unseen(f"{observation.test} is not about {observation.check}")
    return name


def _sha256(text: str) -> str:
    return hashlib.sha256(base64.b64decode(text)).hexdigest()


def _words(text: str) -> tuple[int, ...]:
    return tuple(word for (word,) in struct.iter_unpack("<I", base64.b64decode(text)))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(value for (value,) in struct.iter_unpack("<f", base64.b64decode(text)))


JUDGES: Final[Mapping[str, Judge]] = {
    f"G2-QUANT-{name}": by_test({"test_dequantization": _dequantization, "test_product": _product})
    for name in TYPES
}
