"""The re-scoring judges: an honest run passes, each rule can fail."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.calibration import SHIPPED
from harness.judges import JUDGES
from harness.observation import Exchange, Finding, Observation, Verdict
from tests.unit.recorded import events, exchange, in_one_piece, run, stream

LIMITS = {"min_tokens": 4}
SHA = "a" * 64


@dataclass
class Job:
    kind: str
    emitted: list[int]
    replayed: list[int]
    margins: list[float] = field(default_factory=list)
    logprobs: tuple[float, float] | None = None

    def asked(self, number: int) -> dict[str, Any]:
        return {"prompt": f"prompt {number}", "temperature": 0.0, "max_tokens": 8}


def answered(job: Job, number: int, ids: Sequence[int], side: int) -> Exchange:
    sent = {**job.asked(number), "job_id": f"job {number} {side}"}
    told = events(["x"] * len(ids), sent, ids=list(ids))
    if job.logprobs is not None:
        for name, table in told:
            if name == "token":
                table["logprob"] = job.logprobs[side]
    return stream(told, sent)


def scores(job: Job) -> Exchange:
    margins = job.margins or [0.0] * len(job.emitted)
    rows = [
        {"token_id": e, "rank": int(m > 0), "argmax_id": e + (m > 0), "margin": m, "logprob": -1.0}
        for e, m in zip(job.emitted, margins, strict=True)
    ]
    return exchange("/score", {"scores": rows}, sent={"completion_ids": job.emitted})


def rescored(*jobs: Job, **changed: Any) -> Finding:
    pairs = list(enumerate(jobs))
    seen = {
        "jobs": tuple(answered(job, i, job.emitted, 0) for i, job in pairs),
        "replays": tuple(answered(job, i, job.replayed, 1) for i, job in pairs),
        "scores": tuple(scores(job) for job in jobs if job.kind in ("greedy", "long")),
        "reference_health": (exchange(answer={"model_sha256": SHA, "device": "cpu"}),),
        **changed.pop("exchanges", {}),
    }
    facts = {"kinds": [job.kind for job in jobs], "model_sha256": SHA, **changed}
    name = "G4-GENUINE-RESCORE"
    return JUDGES[name](Observation(name, "test", 1, seen, facts), LIMITS)


GREEDY = Job("greedy", [1, 2, 3], [1, 2, 3])
SAMPLED = Job("sampled", [4, 5], [4, 5])


def fails(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.FAIL, True), found


def errs(found: Finding, says: str) -> None:
    assert (found.verdict, says in found.message) == (Verdict.ERROR, True), found


def test_an_honest_run_passes() -> None:
    logged = Job("logprobs", [7], [7], logprobs=(-1.0, -1.0))
    found = rescored(GREEDY, SAMPLED, logged)
    assert (found.verdict, found.numbers["tokens"]) == (Verdict.PASS, 6)


def test_a_greedy_token_below_the_margin_fails() -> None:
    bad = Job("greedy", [1, 2, 3], [1, 2, 3], margins=[0.0, 0.4, 0.0])
    fails(rescored(bad, SAMPLED), "lies 0.4 logits below")


def test_a_request_that_parts_from_the_replay_fails_with_its_likely_cause() -> None:
    parted = Job("sampled", [4, 5], [4, 6])
    fails(rescored(GREEDY, parted), "at token 1; likely cause: wrong sampler")
    chat = Job("chat", [4, 5], [4, 5, 6])
    fails(rescored(GREEDY, SAMPLED, chat), "wrong chat template or BOS")


def test_a_logprob_that_differs_fails() -> None:
    fails(rescored(GREEDY, Job("logprobs", [7], [7], logprobs=(-0.02, -2.0))), "reported logprob")


def test_a_replay_that_saw_enough_may_end_early() -> None:
    jobs = [Job("sampled", [4, 5], [4, 6]), SAMPLED, GREEDY]
    first = tuple(answered(jobs[0], 0, jobs[0].replayed, 1) for _ in range(1))
    cut = {"replays": first, "scores": ()}
    fails(rescored(*jobs, exchanges=cut), "1 of 1 requests part")
    same = {"replays": (answered(SAMPLED, 0, [4, 5], 1),), "scores": ()}
    errs(rescored(SAMPLED, *jobs, exchanges=same), "only 1 requests were replayed")


def test_another_calibration_is_used_and_named() -> None:
    table = json.loads(SHIPPED.read_bytes())
    assert rescored(GREEDY, SAMPLED).numbers["custom_calibration"] is False
    table["pairings"]["cpu/cpu"]["worst_margin"] = 0.05
    near = Job("greedy", [1, 2, 3], [1, 2, 3], margins=[0.0, 0.15, 0.0])
    fails(rescored(near, SAMPLED), "lies 0.15 logits below")
    found = rescored(near, SAMPLED, calibration=json.dumps(table))
    assert (found.verdict, found.numbers["custom_calibration"]) == (Verdict.PASS, True)
    parted = Job("sampled", [4, 5], [4, 6])
    fails(rescored(near, parted, calibration=json.dumps(table)), "part from the reference's")
    table["pairings"]["cpu/cpu"]["worst_margin"] = 5.0
    errs(rescored(near, SAMPLED, calibration=json.dumps(table)), "is accepted")


def test_a_device_without_honest_runs_cannot_be_judged() -> None:
    other = (exchange(answer={"model_sha256": SHA, "device": "tpu:0"}),)
    errs(rescored(GREEDY, SAMPLED, exchanges={"reference_health": other}), "no honest runs of tpu")


def test_too_few_tokens_fail() -> None:
    fails(rescored(GREEDY), "only 3 tokens were emitted, wanted 4")


def test_what_cannot_be_compared_is_an_error() -> None:
    other = (exchange(answer={"model_sha256": "b" * 64}),)
    errs(
        rescored(GREEDY, SAMPLED, exchanges={"reference_health": other}), "nothing can be compared"
    )
    errs(rescored(GREEDY, SAMPLED, kinds=["greedy"]), "one replay for each job")
    swapped = (answered(GREEDY, 5, [1, 2, 3], 1), answered(SAMPLED, 1, [4, 5], 1))
    errs(rescored(GREEDY, SAMPLED, exchanges={"replays": swapped}), "asked the reference for")
    wrong = (scores(Job("greedy", [9, 9, 9], [])),)
    errs(rescored(GREEDY, SAMPLED, exchanges={"scores": wrong}), "are not those")
    errs(rescored(GREEDY, SAMPLED, exchanges={"scores": wrong * 2}), "2 scores for 1 greedy")


def late(first: Sequence[int], last: Sequence[int], gap_s: float = 40, **sent: Any) -> Finding:
    seen = {
        "early": (run(["x"] * len(first), ids=list(first), prompt="p"),),
        "late": (
            run(["x"] * len(last), at_ms=gap_s * 1e3, ids=list(last), **{"prompt": "p", **sent}),
        ),
        "jobs": (run(["x"]),),
    }
    name = "G4-GENUINE-LATE"
    return JUDGES[name](Observation(name, "test", 1, seen, {}), {"min_between_s": 30})


def test_late() -> None:
    assert late([1, 2], [1, 2]).verdict == Verdict.PASS
    fails(late([1, 2], [1, 3]), "differs at token 1")
    errs(late([1, 2], [1, 2], gap_s=20), "only 20 s")
    errs(late([1, 2], [1, 2], prompt="q"), "is not the early one")


def late_of(first: Exchange, last: Exchange, kind: str = "") -> Finding:
    seen = {"early": (first,), "late": (replace(last, sent_ns=10**12),), "jobs": (first,)}
    name = "G4-GENUINE-LATE"
    told = Observation(name, "test", 1, seen, {"early_kinds": [kind]})
    return JUDGES[name](told, {"min_between_s": 30})


def test_late_answers_in_one_piece() -> None:
    sent = {"prompt": "p", "temperature": 0.0, "max_tokens": 4}
    assert late_of(*[in_one_piece("ab", 2, **sent)] * 2, "whole").verdict == Verdict.PASS
    other = in_one_piece("ac", 2, **sent)
    fails(late_of(in_one_piece("ab", 2, **sent), other, "whole"), "differs at token 1")


def test_late_needs_a_request_whose_answer_must_be_the_same() -> None:
    sent = {"prompt": "p", "temperature": 0.9, "max_tokens": 4}
    told = [stream(events(["x"], sent, ids=[i]), {**sent, "job_id": str(i)}) for i in (1, 2)]
    errs(late_of(told[0], told[1]), "no early request was one whose answer must be the same")


def paired(job: Exchange, replay: Exchange, kind: str, *scored: Exchange) -> Finding:
    """One request of this kind beside a greedy one that is as it should be."""
    return rescored(
        GREEDY,
        SAMPLED,
        kinds=["greedy", kind],
        exchanges={
            "jobs": (answered(GREEDY, 0, GREEDY.emitted, 0), job),
            "replays": (answered(GREEDY, 0, GREEDY.emitted, 1), replay),
            "scores": (scores(GREEDY), *scored),
        },
    )


def test_answers_in_one_piece_are_compared() -> None:
    sent = {"prompt": "p", "temperature": 0.0, "max_tokens": 4}
    job = in_one_piece("abc", 3, **sent)
    assert paired(job, job, "whole").verdict == Verdict.PASS
    found = paired(job, in_one_piece("abd", 3, **sent), "whole")
    fails(found, "another answer where none is streamed")


def test_a_seed_that_the_engine_drew_is_the_replays() -> None:
    sent = {"prompt": "p", "temperature": 0.9, "max_tokens": 4}
    job = stream(events(["x"], sent, started={"seed": 77}), {**sent, "job_id": "a"})

    def replay(seed: int) -> Exchange:
        asked = {**sent, "seed": seed, "job_id": "b"}
        return stream(events(["x"], asked), asked)

    assert paired(job, replay(77), "sampled").verdict != Verdict.ERROR
    errs(paired(job, replay(78), "sampled"), "asked the reference for")


def test_prompts_of_token_ids_are_scored() -> None:
    sent = {"prompt_ids": [5, 6], "temperature": 0.0, "max_tokens": 4}

    def told(*ids: int) -> Exchange:
        return stream(events(["x"] * len(ids), sent, ids=list(ids)), {**sent, "job_id": str(ids)})

    job = Job("ids", [7, 8], [])
    assert paired(told(7, 8), told(7, 8), "ids", scores(job)).verdict == Verdict.PASS
    fails(paired(told(7, 8), told(7, 9), "ids", scores(job)), "prompts of token ids")
    errs(paired(told(7, 8), told(7, 8), "ids"), "1 scores for 2 greedy jobs")
