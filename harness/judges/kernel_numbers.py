"""Judges of the kernels' numbers: beside float64, over shapes and features they must have."""

from collections.abc import Mapping
from typing import Final

from harness.judges.quants import TYPES
from harness.judges.rule import Unseen, fact, judge, limit, need, passed
from harness.observation import Finding, Json, Judge, Limits, Observation

MIN_REPEATS: Final = 50
MIN_DRAWS: Final = 64
MIN_RIGHT: Final = 0.95
FEATURES: Final[Mapping[str, tuple[str, ...]]] = {
    "EMBED": (*TYPES, "position"),
    "GEMV": (*TYPES, "norm", "add", "SILU", "CLAMPED", "segments", "logits"),
    "GEMM": (*TYPES, "few", "middle", "many", "SILU", "CLAMPED"),
    "ROPE": ("table", "yarn", "adjacent", "half", "none", "cache"),
    "NORM": ("rms", "layer"),
    "ACT": ("copy", "add", "gelu", "silu", "clamped_swiglu"),
    "ATTN": (
        "prefill", "decode", "mha", "gqa", "window", "sinks", "131072 positions",
        *(f"head_dim {n}" for n in (64, 80, 96, 128)),
    ),
    "MOE": (
        "route", "experts", "combine", "ties", "few", "many",
        "exact F32", "exact F16", "exact BF16",
    ),
    "SAMPLE": (
        "greedy", "greedy with penalty", "temperature", "top_k", "top_p", "min_p", "penalty",
    ),
}  # fmt: skip
"""What the cases of a kernel must cover between them."""


@judge
def judge_kernel(observation: Observation, limits: Limits) -> Finding:
    """Every case is finite, within the bound of float64, and the same bits every time."""
    kernel = observation.check.removeprefix("G1-KERNEL-")
    probe = fact(observation, "probe")
    device = str(probe["device"])
    if not device.startswith("cuda"):
        raise Unseen(f"the kernels ran on {device}, wanted a CUDA device")
    cases = [case for case in probe["cases"] if case["kernel"] == kernel]
    covered = {feature for case in cases for feature in case["covers"]}
    missing = [feature for feature in FEATURES[kernel] if feature not in covered]
    if missing:
        raise Unseen(f"{kernel}: {', '.join(missing)} was not measured")
    bound = limit(limits, "relative_error")
    worst = max(_case(case, bound) for case in cases)
    return passed(
        f"{len(cases)} cases of {kernel} on {device} within {worst:.2g} of float64, "
        f"{MIN_REPEATS} times the same bits",
        cases=len(cases),
        worst=worst,
    )


def _case(case: Mapping[str, Json], bound: float) -> float:
    place = f"{case['kernel']}, {case['name']}"
    need(case["repeats"] >= MIN_REPEATS, f"{place}: only {case['repeats']} repeats")
    need(case["distinct"] == 1, f"{place}: {case['distinct']} results in {case['repeats']} runs")
    if "draws" in case:
        return _draws(place, case["draws"], bound)
    need(bool(case["outputs"]), f"{place}: no output was measured")
    return max(_output(place, output, bound) for output in case["outputs"])


def _output(place: str, output: Mapping[str, Json], bound: float) -> float:
    n, finite = output["n_values"], output["n_finite"]
    need(n > 0 and finite == n, f"{place}: {finite} of {n} values are finite")
    need(output["reference_norm"] > 0, f"{place}: the reference is zero")
    error = float(output["error_norm"] / output["reference_norm"])
    need(0 <= error <= bound, f"{place}: off by {error:.2g} of the reference, at most {bound:g}")
    return error


def _draws(place: str, draws: list[Mapping[str, Json]], bound: float) -> float:
    """The uniform draw lies in its token's interval, nearly always without any slack."""
    need(len(draws) >= MIN_DRAWS, f"{place}: only {len(draws)} draws")
    outside: list[float] = []
    for drawn in draws:
        low, high = drawn["interval"]
        need(drawn["steps"] == [1, 1], f"{place}: position and index moved by {drawn['steps']}")
        need(low < high, f"{place}: token {drawn['token']} had been cut away")
        outside.append(max(0.0, low - drawn["draw"], drawn["draw"] - high))
    worst = float(max(outside))
    need(worst <= bound, f"{place}: a draw lies {worst:.2g} outside its token's interval")
    right = outside.count(0.0) / len(outside)
    need(right >= MIN_RIGHT, f"{place}: only {right:.0%} of the draws give float64's token")
    return worst


JUDGES: Final[Mapping[str, Judge]] = {f"G1-KERNEL-{kernel}": judge_kernel for kernel in FEATURES}
