from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from harness.checklist import load_checklists
from harness.errors import ChecklistError, SignatureError
from harness.keys import Signer, ephemeral_signer
from harness.observation import Verdict
from harness.outcome import CheckResult
from harness.waivers import Waiver, load_waivers, waive, waiver_from_json

TODAY = datetime.now(UTC).date()


def waiver_toml(check: str, issued: date = TODAY, days: int = 30) -> str:
    expires = issued + timedelta(days=days)
    return (
        f'[[waiver]]\ncheck = "{check}"\nowner = "A. Person"\nreason = "the GPU is on loan"\n'
        f"issued = {issued}\nexpires = {expires}\n"
    )


def sign(path: Path, signer: Signer) -> None:
    path.with_name(path.name + ".sig").write_bytes(signer.sign(path.read_bytes()))


def load(path: Path, text: str, *, run_key: Signer | None = None) -> tuple[Waiver, ...]:
    signer = ephemeral_signer()
    path.write_text(text)
    sign(path, signer)
    run_key_id = (run_key or ephemeral_signer()).public.key_id
    return load_waivers(path, [signer.public], run_key_id, load_checklists())


def test_a_signed_waiver_is_read_and_survives_json(tmp_path: Path) -> None:
    (waiver,) = load(tmp_path / "w.toml", waiver_toml("G1-RNG"))
    assert (waiver.check, waiver.owner) == ("G1-RNG", "A. Person")
    assert waiver_from_json(waiver.to_json()) == waiver


@pytest.mark.parametrize(
    "check",
    [
        "G4-HAIKU",
        "G4-TRACE",
        "G4-GATES-1-3",
        *(id_ for id_ in load_checklists().checks if id_.startswith("G4-GENUINE-")),
    ],
)
def test_some_checks_can_never_be_waived(tmp_path: Path, check: str) -> None:
    with pytest.raises(ChecklistError, match="never be waived"):
        load(tmp_path / "w.toml", waiver_toml(check))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (waiver_toml("G1-NOTHING"), "no checklist has this check"),
        (waiver_toml("G1-RNG", days=91), "at most 90 days"),
        (waiver_toml("G1-RNG", days=-1), "at most 90 days"),
        (waiver_toml("G1-RNG").replace("A. Person", ""), "owner"),
        (waiver_toml("G1-RNG") + 'colour = "red"\n', "unknown field 'colour'"),
        ("= nonsense", "not valid TOML"),
    ],
)
def test_a_waiver_that_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ChecklistError, match=said):
        load(tmp_path / "w.toml", text)


def test_an_edited_waiver_file_is_refused(tmp_path: Path) -> None:
    path, signer = tmp_path / "w.toml", ephemeral_signer()
    path.write_text(waiver_toml("G1-RNG"))
    sign(path, signer)
    path.write_text(waiver_toml("G1-KV"))
    with pytest.raises(SignatureError, match="wanted the signature of a key"):
        load_waivers(path, [signer.public], "another", load_checklists())


def test_the_key_of_the_run_cannot_sign_its_waivers(tmp_path: Path) -> None:
    path, signer = tmp_path / "w.toml", ephemeral_signer()
    path.write_text(waiver_toml("G1-RNG"))
    sign(path, signer)
    with pytest.raises(SignatureError, match="the run's own key"):
        load_waivers(path, [signer.public], signer.public.key_id, load_checklists())


@pytest.mark.parametrize(
    ("day", "wanted"),
    [(-1, Verdict.FAIL), (0, Verdict.WAIVED), (30, Verdict.WAIVED), (31, Verdict.FAIL)],
)
def test_a_waiver_holds_from_issue_to_expiry(day: int, wanted: Verdict) -> None:
    waiver = Waiver("G1-RNG", "A", "b", TODAY, TODAY + timedelta(days=30), "key")
    check = load_checklists().checks["G1-RNG"]
    at = datetime.combine(TODAY + timedelta(days=day), datetime.min.time(), UTC)
    result = CheckResult("G1-RNG", 1, Verdict.FAIL, "no")
    assert waive(result, check, [waiver], at).verdict == wanted
