"""Judges of each architecture's logits and greedy tokens, against an independent implementation."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.judges.http import healthy
from harness.judges.rule import (
    Unseen,
    body,
    exchange,
    fact,
    fields,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.judges.stream import finished
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation

ARCHITECTURES: Final[Mapping[str, str]] = {
    "G2-LLAMA": "llama",
    "G2-QWEN2": "qwen2",
    "G2-PHI3": "phi3",
    "G2-GPT2": "gpt2",
    "G2-GPTOSS": "gpt-oss",
}
MIN_FORCED: Final = 100
MIN_GREEDY: Final = 16
_SCORE: Final = {"token_id": "count", "logprob": "number", "argmax_id": "count"}


@judge
def judge_architecture(observation: Observation, limits: Limits) -> Finding:
    """Logprobs of forced tokens and of the best alternatives are the oracle's, and so are choices.

    Logits within the bound (a share of the range of that position's logits) give logprobs within
    twice the bound: the logit's own error and that of the normalization.
    """
    golden = fact(observation, "golden")
    wanted = ARCHITECTURES[observation.check]
    if golden["architecture"] != wanted:
        raise Unseen(f"the golden is of {golden['architecture']}, the check of {wanted}")
    sha256 = fact(observation, "model_sha256")
    if sha256 != golden["sha256"]:
        raise Unseen(f"the golden is of the file {golden['sha256']}, the file is {sha256}")
    got = healthy(exchange(observation, "health"), sha256)["architecture"]
    need(got == wanted, f"/health: architecture is {got!r}, wanted {wanted!r}")
    bound = limit(limits, "logit_bound_ratio")
    errors = _forced(golden["forced"], exchange(observation, "forced"), bound)
    errors += _greedy(golden["greedy"], exchange(observation, "greedy"), bound)
    return passed(
        f"{len(errors)} logprobs within {max(errors):.2g} of the logits' range",
        logprobs=len(errors),
        worst_ratio=max(errors),
    )


def _asked(golden: Mapping[str, Json], seen: Exchange, names: Sequence[str]) -> None:
    sent = request(seen)
    if any(sent.get(name) != golden[name] for name in names):
        raise Unseen("the engine was asked about other tokens than the golden's")


def _forced(golden: Mapping[str, Json], seen: Exchange, bound: float) -> list[float]:
    _asked(golden, seen, ("prompt_ids", "completion_ids"))
    wanted, rows = golden["completion_ids"], body(seen).get("scores")
    need(len(wanted) >= MIN_FORCED, f"the golden has only {len(wanted)} forced tokens")
    need(isinstance(rows, list) and len(rows) == len(wanted), "/score: not one score a token")
    assert isinstance(rows, list)
    errors = []
    for index, row in enumerate(rows):
        place = f"/score: position {index}"
        fields(row, _SCORE, place)
        need(row["token_id"] == wanted[index], f"{place}: another token is scored")
        span = golden["logit_range"][index]
        errors.append(_error(row["logprob"], golden["logprobs"][index], span, bound, place))
        best = golden["argmax_ids"][index]
        need(
            row["argmax_id"] == best or golden["margins"][index] < 2 * bound * span,
            f"{place}: the engine prefers {row['argmax_id']}, the oracle {best}",
        )
    return errors


def _greedy(golden: Mapping[str, Json], seen: Exchange, bound: float) -> list[float]:
    _asked(golden, seen, ("prompt_ids",))
    need(request(seen).get("temperature") == 0, "the request is not greedy")
    stream, wanted = finished(seen), golden["completion_ids"]
    need(len(wanted) >= MIN_GREEDY, f"the golden has only {len(wanted)} greedy tokens")
    need(stream.ids == wanted, f"greedy tokens {stream.ids}, the oracle's are {wanted}")
    errors = []
    for index, token in enumerate(stream.tokens):
        place, span = f"greedy token {index}", golden["logit_range"][index]
        errors += _alternatives(token.raw, golden["top"][index], span, bound, place)
    return errors


def _alternatives(
    token: Mapping[str, Any], top: list[tuple[int, float]], span: float, bound: float, place: str
) -> list[float]:
    """The best logprobs in order, and those of the ids that both name."""
    rows = [(row["id"], row["logprob"]) for row in token.get("top", ())]
    need(len(rows) == len(top), f"{place}: {len(rows)} alternatives, wanted {len(top)}")
    pairs = [(got, want) for (_, got), (_, want) in zip(rows, top, strict=True)]
    oracle = dict(top)
    pairs += [(got, oracle[id_]) for id_, got in rows if id_ in oracle]
    return [_error(got, want, span, bound, place) for got, want in pairs]


def _error(got: float, want: float, span: float, bound: float, place: str) -> float:
    error = abs(got - want) / span
    need(
        error <= 2 * bound,
        f"{place}: logprob {got:.5f}, the oracle's {want:.5f}: {error:.2g} of the logits' range",
    )
    return error


JUDGES: Final[Mapping[str, Judge]] = dict.fromkeys(ARCHITECTURES, judge_architecture)
