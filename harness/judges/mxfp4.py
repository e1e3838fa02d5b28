"""The judge of MXFP4: product, attention, router, experts, head against micro-goldens."""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from harness.judges.rule import Unseen, fact, judge, limit, need, passed
from harness.observation import Finding, Json, Judge, Limits, Observation

PARTS: Final = ("product", "attention", "router", "experts", "head")
MIN_TOKENS: Final = 4


@judge
def judge_mxfp4(observation: Observation, limits: Limits) -> Finding:
    """For every token of every part the error is within the bound of the largest element."""
    golden, probe = fact(observation, "golden"), fact(observation, "probe")
    cases = {case["part"]: case for case in probe["cases"]}
    n_tokens = len(golden["token_ids"])
    need(n_tokens >= MIN_TOKENS, f"the golden has only {n_tokens} tokens")
    bound, worst = limit(limits, "relative_error"), {}
    for part in PARTS:
        if part not in cases or part not in golden["parts"]:
            raise Unseen(f"{part} was not computed")
        case = cases[part]
        for name in ("model_sha256", "token_ids"):
            if case[name] != golden[name]:
                raise Unseen(f"{part}: {name} is not the golden's")
        worst[part] = _worst(part, case, golden["parts"][part], n_tokens)
        need(worst[part] <= bound, f"{part}: off by {worst[part]:.2g}, at most {bound:g}")
    told = ", ".join(f"{part} {error:.1g}" for part, error in worst.items())
    return passed(f"relative errors on {probe['device']}: {told}", **worst)


def _worst(part: str, case: Mapping[str, Json], golden: Mapping[str, Json], n_tokens: int) -> float:
    """The largest error of a token, in shares of its largest element; infinite if not finite."""
    width = golden["width"]
    wanted = _floats(golden["float32_base64"])
    got = [value / 2 for value in _floats(case["doubled_base64"])]
    need(len(wanted) == width * n_tokens, f"{part}: the golden is not whole")
    need(len(got) == len(wanted), f"{part}: {len(got)} numbers, wanted {len(wanted)}")
    rows = range(0, len(wanted), width)
    return max(_error(got[at : at + width], wanted[at : at + width]) for at in rows)


def _error(got: Sequence[float], wanted: Sequence[float]) -> float:
    largest = max(map(abs, wanted))
    if largest == 0 or not all(map(math.isfinite, got)):
        return math.inf
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True)) / largest


def _floats(text: str) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<f", base64.b64decode(text))]


JUDGES: Final[Mapping[str, Judge]] = {"G3-MXFP4": judge_mxfp4}
