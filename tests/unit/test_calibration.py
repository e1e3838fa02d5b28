"""Calibration: thresholds follow from counts, and no file can make a cheat pass."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.calibration import (
    LEAST_MARGIN_LOGITS,
    SAFETY,
    SHIPPED,
    SHIPPED_SHA256,
    WIDEST_MARGIN_LOGITS,
    Evidence,
    Pairing,
    Replay,
    given_calibration,
    parse_calibration,
    shipped_calibration,
)
from harness.errors import CalibrationError
from harness.gates import JudgeContext, judge_gate
from harness.judges import JUDGES
from harness.observation import Verdict
from harness.outcome import CheckResult, TestResult
from harness.rescore import Score
from harness.rescoring import CHECK
from harness.saboteurs.registry import SABOTEURS

CPU = shipped_calibration().pairing("cpu/cpu")
CUDA = shipped_calibration().pairing("cuda/cuda")
HONEST = Evidence([Score(1, 0, 1, 0.0)] * 300, [Replay("sampled", 30, False)] * 30, [0.0] * 100)


def objections(pairing: Pairing, **changed: Any) -> str:
    return "; ".join(pairing.objections(replace(HONEST, **changed)))


def edited(**changed: Any) -> bytes:
    table = json.loads(SHIPPED.read_bytes())
    table["pairings"]["cpu/cpu"] |= changed
    return json.dumps(table).encode()


def test_the_shipped_file_is_the_pinned_one() -> None:
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == SHIPPED_SHA256
    assert shipped_calibration().shipped
    assert shipped_calibration().label["custom_calibration"] is False


@pytest.mark.parametrize("pairing", [CPU, CUDA], ids=lambda pairing: pairing.name)
def test_an_honest_run_meets_no_objection(pairing: Pairing) -> None:
    assert objections(pairing) == ""


@pytest.mark.parametrize("pairing", [CPU, CUDA], ids=lambda pairing: pairing.name)
def test_each_objection_can_be_made(pairing: Pairing) -> None:
    beyond = Score(2, 1, 1, pairing.margin_bound * 1.01)
    within = Score(2, 1, 1, pairing.margin_bound * 0.99)
    assert "logits below" in objections(pairing, scores=[beyond])
    assert objections(pairing, scores=[*HONEST.scores, within]) == ""
    assert "too often" in objections(pairing, scores=[within] * 20)
    parted = [*HONEST.replays, Replay("chat", 7, True)]
    assert "first (chat) at token 7" in objections(pairing, replays=parted)
    assert "reported logprob" in objections(pairing, logprob_gaps=[pairing.logprob_bound * 1.01])


def test_on_another_device_replays_may_part_but_not_too_often() -> None:
    other = shipped_calibration().pairing("cuda/cpu")
    once = [*HONEST.replays, Replay("sampled", 7, True)]
    assert objections(other, replays=once) == ""
    assert "too often" in objections(other, replays=[Replay("sampled", 2, True)] * 20)


def test_thresholds_follow_from_counts() -> None:
    assert CUDA.margin_bound == pytest.approx(SAFETY * CUDA.worst_margin)
    assert CPU.margin_bound == LEAST_MARGIN_LOGITS
    assert CPU.inexact_test.honest_rate == pytest.approx(3 / CPU.greedy_tokens, rel=0.01)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"worst_margin": 1.0}, "at most 0.25 is accepted"),
        ({"worst_logprob_gap": 1.0}, "at most 0.25 is accepted"),
        ({"worst_margin": float("nan")}, "NaN"),
        ({"parted": 5}, "no honest engine's"),
        ({"parted": -1}, "negative"),
        ({"greedy_tokens": 100}, "at least 2000 tokens"),
        ({"greedy_tokens": "many"}, "no calibration file"),
        ({"compared_tokens": None}, "no calibration file"),
    ],
)
def test_what_no_file_may_hold(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        parse_calibration(edited(**changed), "f.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 9, "pairings": {}}', b"\xff"])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(CalibrationError, match=r"f\.json"):
        parse_calibration(content, "f.json")


def test_the_widest_custom_file_excuses_no_cheat() -> None:
    widest = WIDEST_MARGIN_LOGITS / SAFETY
    content = edited(worst_margin=widest, worst_logprob_gap=widest, inexact=8000)
    custom = parse_calibration(content, "f.json")
    assert not custom.shipped
    pairing = custom.pairing("cpu/cpu")
    assert "part from the reference's replay" in objections(
        pairing, replays=[Replay("greedy", 3, True)]
    )
    assert "logits below" in objections(pairing, scores=[Score(2, 1, 1, 0.3)])


def test_an_unknown_pairing_is_named() -> None:
    with pytest.raises(CalibrationError, match="no honest runs of tpu/tpu"):
        shipped_calibration().pairing("tpu/tpu")


def test_a_given_file_is_checked_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    with pytest.raises(CalibrationError, match="No such file"):
        given_calibration(path)
    path.write_bytes(edited(worst_margin=9.0))
    with pytest.raises(CalibrationError, match="is accepted"):
        given_calibration(path)
    path.write_bytes(edited(runs=41))
    assert parse_calibration(given_calibration(path).encode(), "mine").shipped is False


def test_a_refused_file_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    path.write_bytes(edited(worst_margin=9.0))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--calibration", str(path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "a margin of 36 logits, at most 0.25 is accepted" in ran.stderr


@pytest.mark.parametrize("custom", [True, False])
def test_the_title_names_a_custom_calibration(custom: bool) -> None:
    used = TestResult("t", Verdict.PASS, "", numbers={"custom_calibration": custom})
    result = CheckResult(CHECK, 4, Verdict.PASS, "", tests=(used,))
    title = judge_gate(JudgeContext(profile="cpu", gate=1), [result]).title
    assert ("Custom calibration." in title) is custom


CAME_LATER = {"honest-on-odd-requests", "cheats-under-load", "caps-temperature"}
"""Written after the campaign; the page on calibration says that their rates are not measured."""

CALIBRATION_PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"


def test_every_saboteur_of_the_check_is_in_the_shipped_rates() -> None:
    meant = {name for name, one in SABOTEURS.items() if one.caught_by == CHECK} - CAME_LATER
    assert all(f"`{name}`" in CALIBRATION_PAGE.read_text() for name in CAME_LATER)
    for pairing in ("cpu/cpu", "cuda/cuda"):
        rates = shipped_calibration().table["rates"][pairing]
        assert meant <= set(rates)
        assert rates["honest"]["alarms"] == 0
        assert all(rates[name]["alarms"] == rates[name]["runs"] >= 20 for name in meant)
    assert CHECK in JUDGES
