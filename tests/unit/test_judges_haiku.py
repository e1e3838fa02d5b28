"""The haiku's judge: an honest attempt passes, and every single lie fails."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from harness.calibration import SHIPPED
from harness.haiku import few_shot_prompt, haiku_challenge, haiku_request, minute_word
from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import exchange, run

NONCE, MODEL = "run nonce", "ab" * 32
AT = datetime(2026, 1, 2, 3, 55, 1, tzinfo=UTC).timestamp()
ASKED = haiku_challenge(NONCE, 1, 55)
TEXTS = [f" {ASKED.minute_word}", f" {ASKED.code_word}\n", "warps hum\n"]
IDS = [5, 6, 7]
LIMITS = {"total_s": 30.0}


def haiku(at_ms: float, **changed: Any) -> Exchange:
    sent = {"prompt": few_shot_prompt(ASKED), "temperature": 0.0, "seed": ASKED.seed}
    return run(changed.pop("texts", TEXTS), at_ms, ids=changed.pop("ids", IDS), **sent | changed)


def metrics(value: int) -> Exchange:
    return exchange("/metrics", f"worker_tokens_generated_total {value}.0\n".encode())


def scores(ids: list[int], margin: float = 0.0, prompt: tuple[int, ...] = (1, 2)) -> Exchange:
    rows = [{"token_id": i, "rank": 0, "argmax_id": i, "margin": margin} for i in ids]
    sent = {"prompt_ids": list(prompt), "completion_ids": ids}
    return exchange("/score", {"scores": rows}, sent=sent)


def reference(device: str) -> Exchange:
    return exchange(answer={"model_sha256": MODEL, "device": device})


def observed(**changed: Any) -> dict[str, Any]:
    health = exchange(answer={"model_sha256": MODEL})
    prompt = few_shot_prompt(ASKED)
    return {
        "haiku": haiku(0),
        "again": haiku(100),
        "sampled": haiku(200, temperature=0.7, ids=[8, 9, 9]),
        "sampled_again": haiku(300, temperature=0.7, ids=[8, 9, 9]),
        "other_seeds": haiku(400, temperature=0.7, ids=[4, 4, 4], seed=ASKED.seed + 1),
        "health": health,
        "metrics_before": metrics(10),
        "metrics_after": metrics(13),
        "reference_health": reference("cpu"),
        "reference_tokenize": exchange("/tokenize", {"ids": [1, 2]}, sent={"text": prompt}),
        "reference_score": scores(IDS),
        "engine_alive_at_rescoring": False,
        "process": {"rss_bytes": 200},
        "weights_bytes": 100,
        "model_sha256": MODEL,
        "nonce": NONCE,
        "asked_at": AT,
        **changed,
    }


def judged(**changed: Any) -> Finding:
    named = observed(**changed)
    seen = {k: (v,) for k, v in named.items() if isinstance(v, Exchange)}
    facts = {k: v for k, v in named.items() if not isinstance(v, Exchange)}
    return JUDGES["G4-HAIKU"](Observation("G4-HAIKU", "test_haiku", 1, seen, facts), LIMITS)


def test_an_honest_haiku_passes() -> None:
    found = judged()
    assert found.verdict == Verdict.PASS, found.message


def test_how_far_a_token_may_lie_follows_from_honest_runs_on_its_device() -> None:
    near = {"reference_score": scores(IDS, margin=0.002)}
    assert judged(**near).verdict == Verdict.FAIL
    on_gpu = {"reference_health": reference("cuda:0")}
    found = judged(**near, **on_gpu)
    assert (found.verdict, found.numbers["custom_calibration"]) == (Verdict.PASS, False)
    assert judged(reference_score=scores(IDS, margin=0.06), **on_gpu).verdict == Verdict.FAIL
    found = judged(reference_health=reference("tpu"))
    assert (found.verdict, "no honest runs of tpu" in found.message) == (Verdict.ERROR, True)


def test_another_calibration_is_used_and_named() -> None:
    table = json.loads(SHIPPED.read_bytes())
    table["pairings"]["cpu/cpu"]["worst_margin"] = 0.01
    found = judged(reference_score=scores(IDS, margin=0.03), calibration=json.dumps(table))
    assert (found.verdict, found.numbers["custom_calibration"]) == (Verdict.PASS, True)
    table["pairings"]["cpu/cpu"]["worst_margin"] = 5.0
    assert judged(calibration=json.dumps(table)).verdict == Verdict.ERROR


WORDLESS = ["forty ", "oaks\n", "warps hum\n"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"metrics_after": metrics(12)}, "rose by 2, 3 tokens came"),
        ({"metrics_after": exchange("/metrics", b"nothing\n")}, "stands there 0 times"),
        ({"again": haiku(100, ids=[5, 6, 8])}, "the same seed: run 2 differs"),
        ({"sampled_again": haiku(300, temperature=0.7, ids=[1, 1, 1])}, "T = 0.7: run 2 differs"),
        (
            {"other_seeds": haiku(400, temperature=0.7, ids=[8, 9, 9], seed=ASKED.seed + 1)},
            "the seed is ignored",
        ),
        ({"process": {"rss_bytes": 99}}, "the weights alone have 100"),
        ({"engine_alive_at_rescoring": True}, "still ran"),
        ({"reference_score": scores(IDS, margin=3.0)}, "not the model's"),
        ({"reference_score": replace(scores(IDS), status=400)}, "refuses the tokens"),
        ({"health": exchange(answer={"model_sha256": "00"})}, "another model file"),
        ({"haiku": haiku(0, texts=WORDLESS), "again": haiku(9, texts=WORDLESS)}, "lacks 'fifty-fi"),
        ({"haiku": replace(haiku(0), status=503)}, "wanted status 200"),
    ],
)
def test_every_lie_fails(changed: dict[str, Any], says: str) -> None:
    found = judged(**changed)
    assert found.verdict == Verdict.FAIL
    assert says in found.message


@pytest.mark.parametrize(
    "changed",
    [
        {"asked_at": AT + 60},
        {"nonce": "another run's"},
        {"reference_health": exchange(answer={"model_sha256": "00"})},
        {"reference_score": scores([5, 6, 8])},
        {"reference_score": scores(IDS, prompt=(9,))},
        {"reference_tokenize": exchange("/tokenize", {"ids": [1, 2]}, sent={"text": "other"})},
        {"haiku": haiku(0, temperature=0.5)},
    ],
)
def test_evidence_of_something_else_is_no_verdict(changed: dict[str, Any]) -> None:
    assert judged(**changed).verdict == Verdict.ERROR


def chatted(texts: list[str], **changed: Any) -> Finding:
    """Profile m0: a conversation, replayed on the reference."""
    asked = {k: v for k, v in haiku_request(ASKED, chat=True).items() if k != "max_tokens"}

    def said(at_ms: float, **fields: Any) -> Exchange:
        ids = fields.pop("ids", IDS)
        return run(fields.pop("texts", texts), at_ms, ids=ids, prompt=None, **asked | fields)

    named = observed(
        haiku=said(0),
        again=said(100),
        sampled=said(200, temperature=0.7, ids=[8, 9, 9]),
        sampled_again=said(300, temperature=0.7, ids=[8, 9, 9]),
        other_seeds=said(400, temperature=0.7, ids=[4, 4, 4], seed=ASKED.seed + 1),
        reference_replay=said(500, **changed),
    )
    seen = {k: (v,) for k, v in named.items() if isinstance(v, Exchange)}
    facts = {k: v for k, v in named.items() if not isinstance(v, Exchange)}
    test = "test_haiku_of_reference[phi-3-mini-4k-instruct]"
    return JUDGES["G4-HAIKU"](Observation("G4-HAIKU", test, 1, seen, facts), LIMITS)


MINUTE, CODE = ASKED.minute_word, ASKED.code_word


def test_a_haiku_of_a_conversation_passes() -> None:
    found = chatted([f"At {MINUTE} now\n", f"the {CODE} warps\n", "hum until the dawn"])
    assert found.verdict == Verdict.PASS, found.message


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([f"{MINUTE} and {MINUTE}\n", f"{CODE}\n", "dawn"], "stands 2 times in it, wanted once"),
        ([f"{MINUTE} warps\n", f"{CODE}", " dawn"], "2 lines, wanted 3"),
        ([f"{MINUTE}\n\n", f"{CODE}\n", "dawn\nand more"], "4 lines, wanted 3"),
        (["warps\n", f"{CODE}\n", "dawn"], "lacks 'fifty-five'"),
    ],
)
def test_a_conversation_is_judged_by_its_form(texts: list[str], says: str) -> None:
    found = chatted(texts)
    assert found.verdict == Verdict.FAIL
    assert says in found.message


def test_a_conversation_must_replay() -> None:
    texts = [f"At {MINUTE} now\n", f"the {CODE} warps\n", "hum until the dawn"]
    found = chatted(texts, ids=[5, 6, 8])
    assert found.verdict == Verdict.FAIL
    assert "the reference's haiku parts" in found.message


SAID = list(range(10, 20))
GOLDEN = {
    "sha256": MODEL,
    "prompt_ids": [1, 2, 3],
    "completion_ids": SAID,
    "margins": [2.0] * 8 + [0.01, 2.0],
}


def fixed(ids: list[int] = SAID, **changed: Any) -> Finding:
    """Profile m0: the fixed question, beside its golden."""
    sent = {"prompt": None, "prompt_ids": [1, 2, 3], "temperature": 0.0, "seed": 42}
    seen = run([" a"] * len(ids), 0, ids=ids, **sent | changed)
    facts = {"golden": GOLDEN, "model_sha256": MODEL}
    test = "test_fixed_haiku[gpt-oss-20b]"
    observation = Observation("G4-HAIKU", test, 1, {"fixed": (seen,)}, facts)
    return JUDGES["G4-HAIKU"](observation, LIMITS)


def test_the_fixed_haiku_is_that_of_transformers() -> None:
    assert fixed().numbers["tokens"] == 10
    near_tie = [*range(10, 18), 99, 98]
    assert fixed(near_tie).numbers["tokens"] == 8
    found = fixed([10, 11, 99, *range(13, 20)])
    assert found.verdict == Verdict.FAIL
    assert "token 2 of the fixed haiku is not that of transformers" in found.message
    assert fixed(list(range(10, 15))).verdict == Verdict.FAIL


@pytest.mark.parametrize("changed", [{"seed": 1}, {"temperature": 0.7}, {"prompt_ids": [1]}])
def test_another_question_is_no_evidence(changed: dict[str, Any]) -> None:
    assert fixed(**changed).verdict == Verdict.ERROR


def test_minutes_in_words() -> None:
    words = [minute_word(minute) for minute in range(60)]
    assert len(set(words)) == 60
    told = [words[n] for n in (0, 19, 20, 55)]
    assert told == ["zero", "nineteen", "twenty", "fifty-five"]
    with pytest.raises(ValueError, match="0 to 59"):
        minute_word(60)


def test_challenges_differ_by_run_and_attempt() -> None:
    drawn = {haiku_challenge(f"n{n}", attempt, 7) for n in range(20) for attempt in (1, 2, 3)}
    assert len(drawn) == 60
    assert haiku_challenge("n", 1, 7) == haiku_challenge("n", 1, 7)
