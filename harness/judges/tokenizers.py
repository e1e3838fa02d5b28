"""Judges of tokenizers: golden vectors, id for id, there and back."""

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
from harness.observation import Exchange, Finding, Json, Judge, Limits, Observation

LONG_CHARACTERS: Final = 2000


@judge
def judge_tokenizer(observation: Observation, limits: Limits) -> Finding:
    """Every text encodes to the golden's ids, and the golden's ids decode to its text."""
    golden, sha256 = fact(observation, "golden"), fact(observation, "model_sha256")
    if sha256 != golden["sha256"]:
        raise Unseen(f"the golden is of the file {golden['sha256']}, the file is {sha256}")
    cases = golden["cases"]
    encoded, decoded = exchanges(observation, "encoded"), exchanges(observation, "decoded")
    if not len(cases) == len(encoded) == len(decoded):
        raise Unseen(f"{len(cases)} vectors, {len(encoded)} encoded, {len(decoded)} decoded")
    texts = {case["text"] for case in cases}
    need(len(texts) >= limit(limits, "min_vectors"), f"only {len(texts)} different texts")
    longest = max(map(len, texts))
    need(longest >= LONG_CHARACTERS, f"the longest text has {longest} characters")
    for case, there, back in zip(cases, encoded, decoded, strict=True):
        _encodes(case, there)
        _decodes(case, back)
    tokens = sum(len(case["ids"]) for case in cases)
    return passed(f"{len(cases)} vectors of {tokens} tokens agree", vectors=len(cases))


def _encodes(case: Mapping[str, Json], seen: Exchange) -> None:
    if request(seen).get("text") != case["text"]:
        raise Unseen("another text than the golden's was encoded")
    ids = body(seen).get("ids")
    at = _first_difference(ids, case["ids"])
    need(ids == case["ids"], f"{case['text']!r:.60}: other ids than the golden's from index {at}")


def _decodes(case: Mapping[str, Json], seen: Exchange) -> None:
    if request(seen).get("ids") != case["ids"]:
        raise Unseen("other ids than the golden's were decoded")
    answer, text = body(seen), case.get("decoded", case["text"])
    need(
        answer.get("text") == text,
        f"{case['text']!r:.60} comes back as {answer.get('text')!r:.60}, wanted {text!r:.60}",
    )
    need(answer.get("dropped_bytes") == 0, f"{case['text']!r:.60}: bytes are dropped")


def _first_difference(ids: Json, wanted: list[int]) -> int:
    got = ids if isinstance(ids, list) else []
    pairs = enumerate(zip(got, wanted, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(got), len(wanted)))


JUDGES: Final[Mapping[str, Judge]] = {
    f"G2-TOKENIZER-{name}": judge_tokenizer
    for name in ("SMOLLM2", "QWEN2", "PHI3", "GPT2", "GPTOSS")
}
