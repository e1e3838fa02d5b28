"""Judges of models against goldens of an independent implementation."""

from collections.abc import Mapping
from typing import Final

from harness.judges.rule import (
    Unseen,
    body,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.observation import Finding, Json, Judge, Limits, Observation
from harness.rescore import read_scores


@judge
def judge_default_model(observation: Observation, limits: Limits) -> Finding:
    """Teacher-forced on the oracle's tokens, the engine's choice is the oracle's.

    Excused is another choice where the oracle's margin is below twice the logit bound (a share of
    the range of that position's logits): the oracle could not tell the two apart either.
    """
    goldens = fact(observation, "goldens")
    if fact(observation, "model_sha256") != goldens["sha256"]:
        raise Unseen("the goldens are of another model file")
    cases, scored = goldens["cases"], exchanges(observation, "scores")
    need(len(cases) >= limit(limits, "min_prompts"), f"only {len(cases)} prompts")
    if len(scored) != len(cases):
        raise Unseen(f"{len(scored)} scores for {len(cases)} goldens")
    bound = limit(limits, "logit_bound_ratio")
    positions = near_ties = excused = 0
    for case, seen in zip(cases, scored, strict=True):
        asked = {name: request(seen).get(name) for name in ("prompt_ids", "completion_ids")}
        if asked != {name: case[name] for name in asked}:
            raise Unseen("the engine scored other tokens than the golden's")
        need(
            len(case["completion_ids"]) >= limit(limits, "min_tokens_per_prompt"),
            f"a golden has only {len(case['completion_ids'])} tokens",
        )
        close, other = _compare(case, body(seen), bound)
        positions += len(case["completion_ids"])
        near_ties, excused = near_ties + close, excused + other
    share, most = excused / positions, limit(limits, "max_excused_ratio")
    need(share <= most, f"{excused} of {positions} positions are excused, at most {most:.0%}")
    return passed(
        f"{positions} positions agree with the oracle, but for {excused} of {near_ties} near-ties",
        positions=positions,
        near_ties=near_ties,
        excused=excused,
        excused_ratio=share,
    )


def _compare(case: Mapping[str, Json], answer: Mapping[str, Json], bound: float) -> tuple[int, int]:
    """How many positions are near-ties, and at how many of those the choice differs."""
    near_ties = excused = 0
    rows = read_scores(answer, len(case["completion_ids"]))
    for index, (row, token_id) in enumerate(zip(rows, case["completion_ids"], strict=True)):
        close = case["margins"][index] < 2 * bound * case["logit_range"][index]
        differs = row.argmax_id != token_id
        need(
            close or not differs,
            f"position {index}: the engine prefers {row.argmax_id} to the oracle's {token_id} "
            f"by {row.margin:.3f} logits, the oracle's margin is {case['margins'][index]:.3f}",
        )
        near_ties += close
        excused += differs
    return near_ties, excused


JUDGES: Final[Mapping[str, Judge]] = {"G2-DEFAULT-MODEL": judge_default_model}
