"""A bundle signed again with another nonce, date, model or waiver does not verify."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import BundleError
from harness.gates import JudgeContext
from harness.keys import ephemeral_signer
from harness.ledger import Entry
from harness.recompute import context_json
from harness.strict_json import dumps_file
from harness.verification import VerifyOptions
from harness.verify import verify_bundle
from harness.verify_binding import check_nonce
from harness.waivers import Waiver
from tests.unit.bundles import CHECKLISTS, JUDGES, NONCE, SEEN, observation, reseal, sealed

HAIKU = replace(CHECKLISTS.gates[0].checks[0], id="G4-HAIKU", observations={"any": ("test_haiku",)})
WITH_HAIKU = replace(
    CHECKLISTS,
    gates=(replace(CHECKLISTS.gates[0], checks=(*CHECKLISTS.gates[0].checks, HAIKU)),),
)


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch) -> None:
    judges = {**JUDGES, "G4-HAIKU": next(iter(JUDGES.values()))}
    monkeypatch.setattr("harness.gates.JUDGES", judges)
    monkeypatch.setattr("tests.unit.bundles.CHECKLISTS", WITH_HAIKU)
    monkeypatch.setattr("tests.unit.bundles.JUDGES", judges)


def bundle_of(root: Path, **facts: Any) -> Path:
    haiku = observation("G4-HAIKU", "test_haiku", facts={"nonce": NONCE, **facts})
    return sealed(root, observations=(*SEEN, haiku))


def forged(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> str:
    """What fails once metadata.json was edited and everything signed again."""
    path = bundle / "metadata.json"
    metadata = json.loads(path.read_text())
    edit(metadata)
    path.write_bytes(dumps_file(metadata))
    reseal(bundle)
    return failures(bundle)


def failures(bundle: Path, **changes: Any) -> str:
    found = verify_bundle(bundle, VerifyOptions(checklists=WITH_HAIKU, **changes))
    return " | ".join(step.message for step in found.steps if step.status == "FAILS")


def test_an_honest_bundle_holds(tmp_path: Path) -> None:
    assert failures(bundle_of(tmp_path, model_sha256="cd" * 32), nonce=NONCE) == ""


def test_a_nonce_holds_where_a_challenge_was_made_from_it(tmp_path: Path) -> None:
    options = VerifyOptions(checklists=WITH_HAIKU, nonce=NONCE)
    assert verify_bundle(bundle_of(tmp_path), options).holds


def test_a_nonce_that_is_only_named_is_nothing(tmp_path: Path) -> None:
    """A forger can write it into metadata.json and a ledger of his own, without asking anybody."""
    options = VerifyOptions(checklists=WITH_HAIKU, nonce=NONCE)
    found = verify_bundle(sealed(tmp_path), options)
    assert not found.holds
    assert "no challenge in it was made from it" in found.steps[7].message


def test_an_old_run_cannot_claim_the_reviewers_nonce(tmp_path: Path) -> None:
    said = forged(bundle_of(tmp_path), lambda m: m.update(nonce="the reviewer's"))
    assert "commits to another nonce" in said


def test_challenges_of_another_nonce_are_named(tmp_path: Path) -> None:
    assert "was asked with another nonce" in failures(bundle_of(tmp_path, nonce="another"))


def test_an_old_run_cannot_claim_to_be_new(tmp_path: Path) -> None:
    def claim(metadata: dict[str, Any]) -> None:
        for name in ("started_at", "ended_at"):
            metadata[name] = metadata[name].replace(metadata[name][:4], "2020")

    assert "outside the run's times" in forged(bundle_of(tmp_path), claim)


def test_a_haiku_of_another_hour_is_named(tmp_path: Path) -> None:
    assert "outside the run's times" in failures(bundle_of(tmp_path, asked_at=1_000_000.0))


def test_another_model_cannot_be_claimed(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, model_sha256="cd" * 32)
    said = forged(bundle, lambda m: m["models"][0].update(name="larger", sha256="ef" * 32))
    assert "none of metadata.json's models" in said


def test_a_waiver_of_the_bundles_own_key_is_refused(tmp_path: Path) -> None:
    signer = ephemeral_signer()
    waiver = Waiver(
        check="G1-HTTP-SSE",
        owner="me",
        reason="mine",
        issued=date(2020, 1, 1),
        expires=date(2020, 2, 1),
        key_id=signer.public.key_id,
    )
    context = JudgeContext(profile="cpu", gate=1, waivers=(waiver,))
    bundle = bundle_of(tmp_path)
    path = bundle / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["judging"] = context_json(context)
    path.write_bytes(dumps_file(metadata))
    reseal(bundle, signer)
    assert "a waiver is signed by the bundle's own key" in failures(bundle)


def test_a_run_that_never_committed_to_its_nonce_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    path = bundle / "attempts.ndjson"
    path.write_bytes(path.read_bytes().replace(b"nonce_committed", b"nonce_forgotten"))
    reseal(bundle)
    assert not verify_bundle(bundle, VerifyOptions(checklists=WITH_HAIKU)).holds


def test_a_nonce_opened_before_the_last_observation_is_refused() -> None:
    nonce = "n"
    told: list[dict[str, Any]] = [
        {"event": "nonce_committed", "sha256": hashlib.sha256(nonce.encode()).hexdigest()},
        {"kind": "observation"},
        {"event": "nonce_opened", "nonce": nonce},
    ]

    def bundle(*records: dict[str, Any]) -> Any:
        ledger = [Entry("main", at, "", at, record, b"") for at, record in enumerate(records)]
        times = {"nonce": nonce, "models": []}
        return SimpleNamespace(metadata=times, ledger=ledger, recorded=list)

    committed, observed, opened = told
    check_nonce(bundle(committed, observed, opened))
    with pytest.raises(BundleError, match="after the nonce was opened"):
        check_nonce(bundle(committed, opened, observed))
    with pytest.raises(BundleError, match="before the nonce was committed"):
        check_nonce(bundle(observed, committed, opened))
    with pytest.raises(BundleError, match="opens another nonce"):
        check_nonce(bundle(committed, observed, {**opened, "nonce": "m"}))
