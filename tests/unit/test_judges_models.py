"""The default model's judge and the sampling judges: what they pass, and how they fail."""

from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.generation import chi_square_p
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import exchange, run

CASE = {
    "prompt_ids": [1, 2],
    "completion_ids": [3, 4],
    "margins": [5.0, 0.1],
    "logit_range": [20.0, 20.0],
}
LIMITS = {
    "logit_bound_ratio": 0.01,
    "max_excused_ratio": 0.5,
    "min_prompts": 1,
    "min_tokens_per_prompt": 2,
}


def scored(argmax: list[int]) -> Exchange:
    rows = [
        {"token_id": t, "rank": int(t != a), "argmax_id": a, "margin": float(t != a)}
        for t, a in zip([3, 4], argmax, strict=True)
    ]
    sent = {"prompt_ids": [1, 2], "completion_ids": [3, 4]}
    return exchange("/score", {"scores": rows}, sent=sent)


def judged(seen: Exchange, limits: dict[str, float] = LIMITS, sha256: str = "aa") -> Finding:
    facts: dict[str, Any] = {"goldens": {"sha256": "aa", "cases": [CASE]}, "model_sha256": sha256}
    named = {"scores": (seen,)}
    return JUDGES["G2-DEFAULT-MODEL"](Observation("G2", "t", 1, named, facts), limits)


def test_agreement_passes_and_a_near_tie_is_excused() -> None:
    assert judged(scored([3, 4])).verdict == Verdict.PASS
    found = judged(scored([3, 9]))
    assert (found.verdict, found.numbers["excused"]) == (Verdict.PASS, 1)


def test_a_clear_difference_fails() -> None:
    found = judged(scored([9, 4]))
    assert found.verdict == Verdict.FAIL
    assert "position 0: the engine prefers 9 to the oracle's 3" in found.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_excused_ratio", 0.4), ("min_prompts", 2), ("min_tokens_per_prompt", 3)],
)
def test_each_limit_can_fail(name: str, value: float) -> None:
    assert judged(scored([3, 9]), {**LIMITS, name: value}).verdict == Verdict.FAIL


def test_evidence_of_another_model_is_an_error() -> None:
    assert judged(scored([3, 4]), sha256="bb").verdict == Verdict.ERROR
    other = exchange("/score", {}, sent={"prompt_ids": [1], "completion_ids": [3, 4]})
    assert judged(other).verdict == Verdict.ERROR


def sampling(test: str, **named: Any) -> Finding:
    seen = {k: v if isinstance(v, tuple) else (v,) for k, v in named.items()}
    return JUDGES["G1-SAMPLING"](Observation("G1-SAMPLING", test, 1, seen, {}), {"p_value": 1e-6})


def test_stop_sequences_cut_exactly() -> None:
    whole = run(["a ", "bc", "d"])
    cut = run(["a ", "b"], at_ms=9, stop=["cd"], reason="stop_sequence")
    assert sampling("test_stop_sequences", whole=whole, stopped=cut).verdict == Verdict.PASS
    late = run(["a ", "bc"], at_ms=9, stop=["cd"], reason="stop_sequence")
    assert "got 'a bc'" in sampling("test_stop_sequences", whole=whole, stopped=late).message
    ignored = run(["a ", "bc", "d"], at_ms=9, stop=["cd"])
    assert "stop_sequence" in sampling("test_stop_sequences", whole=whole, stopped=ignored).message


def test_a_penalty_without_effect_fails() -> None:
    free = run(["a"] * 4, ids=[1, 2, 1, 2])
    fined = run(["a"] * 4, at_ms=9, ids=[1, 2, 3, 4], repetition_penalty=1.5)
    good = sampling("test_repetition_penalty", free=free, penalized=fined)
    assert good.verdict == Verdict.PASS
    same = run(["a"] * 4, at_ms=9, ids=[1, 2, 1, 2], repetition_penalty=1.5)
    assert sampling("test_repetition_penalty", free=free, penalized=same).verdict == Verdict.FAIL


def test_chi_square_agrees_with_the_table() -> None:
    # χ² = 7.815 with 3 degrees of freedom is the 95 % quantile.
    step = (7.815 / 4 * 25) ** 0.5
    seen = [25 + step, 25 - step, 25 + step, 25 - step]
    assert chi_square_p(seen, [25.0] * 4) == pytest.approx(0.05, abs=0.003)
