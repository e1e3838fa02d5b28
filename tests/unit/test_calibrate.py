"""Calibration runs: what is counted, and that no half of the runs judges itself."""

from dataclasses import replace
from typing import Any

import pytest

from harness.calibrate import HonestRun, Rate, false_alarms, file_of, pairing_of
from harness.calibration import parse_calibration
from harness.errors import CalibrationError
from harness.observation import Exchange
from harness.rescore import SCORED
from harness.rescoring import Replies, Rescoring, observation
from tests.unit.recorded import events, exchange, in_one_piece, stream

TOKENS = 40
SHA = "a" * 64


def answered(kind: str, request: dict[str, Any], job_id: str, ids: list[int]) -> Exchange:
    if kind == "whole":
        return in_one_piece("".join(map(chr, ids)), len(ids), **request)
    sent = {**request, "job_id": job_id}
    return stream(events(["x"] * len(ids), sent, ids=ids), sent)


def scored(ids: list[int], margin: float) -> Exchange:
    rows = [{"token_id": i, "rank": 0, "argmax_id": i, "margin": 0.0} for i in ids]
    rows[0] |= {"margin": margin, "argmax_id": ids[0] + (margin > 0)}
    return exchange("/score", {"scores": rows}, sent={"completion_ids": ids})


def run(nonce: str, margin: float = 0.0, parts: bool = False) -> HonestRun:
    """A run whose first greedy token of each scored request lies so far below the argmax."""
    asked = Rescoring.drawn(nonce)
    jobs, replays, scores = [], [], []
    for number, (kind, request) in enumerate(zip(asked.kinds, asked.requests, strict=True)):
        ids = list(range(100, 100 + TOKENS))
        asked_for = {"seed": 1, **request} if request["temperature"] else dict(request)
        jobs.append(answered(kind, dict(request), f"{number} a", ids))
        other = [*ids[:-1], 7] if parts and number == 3 else ids
        replays.append(answered(kind, asked_for, f"{number} b", other))
        scores += [scored(ids, margin)] if kind in SCORED else []
    health = exchange(answer={"model_sha256": SHA, "device": "cpu"})
    told = Replies(replays, scores)
    facts = {"reference_health": health, "model_sha256": SHA}
    return HonestRun(asked, observation(asked, jobs, told, **facts))


def test_honest_runs_are_counted() -> None:
    runs = [run("a", 0.02), run("b")]
    pairing = pairing_of("cpu/cpu", runs)
    n = sum(len(one.asked.requests) for one in runs)
    first, second = (sum(kind in SCORED for kind in one.asked.kinds) for one in runs)
    assert (pairing.runs, pairing.requests, pairing.parted) == (2, n, 0)
    assert (pairing.greedy_tokens, pairing.inexact) == ((first + second) * TOKENS, first)
    assert pairing.compared_tokens == n * TOKENS
    assert pairing.worst_margin == 0.02


def test_a_run_is_not_judged_by_a_threshold_that_it_set() -> None:
    calm = [run(str(number)) for number in range(12)]
    assert false_alarms("cpu/cpu", calm).alarms == 0
    wild = [run("wild", 0.04), *calm[1:]]
    rate = false_alarms("cpu/cpu", wild)
    assert (rate.runs, rate.alarms) == (12, 1)
    assert "lies 0.04 logits below" in rate.messages[0]


def test_an_honest_run_that_parts_is_an_alarm_in_either_half() -> None:
    runs = [run(str(number), parts=number == 2) for number in range(12)]
    rate = false_alarms("cpu/cpu", runs)
    assert rate.alarms >= 1


def test_an_honest_run_that_was_refused_is_named() -> None:
    good = run("a")
    refused = exchange("/execute", {"code": "bad_request"}, sent={}, status=400)
    bad = replace(good.seen, exchanges={**good.seen.exchanges, "jobs": (refused,)})
    with pytest.raises(CalibrationError, match="an honest run cannot be read"):
        pairing_of("cpu/cpu", [replace(good, seen=bad)])


def test_the_file_reads_back_as_what_was_counted() -> None:
    pairing = pairing_of("cpu/cpu", [run(str(number)) for number in range(6)])
    read = parse_calibration(file_of({"cpu/cpu": pairing}), "f.json")
    assert read.pairing("cpu/cpu") == pairing


def test_rates_bound_the_errors_of_either_kind() -> None:
    assert Rate(210, 0).to_json(honest=True)["error_rate_upper_95"] < 0.0142
    assert Rate(210, 210, [3]).to_json(honest=False)["error_rate_upper_95"] < 0.0142
    assert Rate(20, 19, [3]).to_json(honest=False)["error_rate_upper_95"] > 0.2
    assert Rate().to_json(honest=True)["error_rate_upper_95"] == 1.0
