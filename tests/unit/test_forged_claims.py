"""A forger who has our own tools, and signs with a key of his own, claims what was not judged."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.bundle_commands import print_verification
from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.evidence import list_files
from harness.junit import render_junit
from harness.keys import PublicKey, Signer, ephemeral_signer
from harness.models import registry, unpublished
from harness.observation import Verdict
from harness.outcome import attempts_from
from harness.recompute import recomputed_checks
from harness.report import markdown, render_reports
from harness.strict_json import dumps_file, loads
from harness.verification import Verification, VerifyOptions
from harness.verify import verify_bundle
from harness.verify_metadata import check_blockers, check_judged, check_published
from harness.visible import one_line
from tests.unit.bundles import CHECKLISTS, JUDGES, exchange, observation, reseal, sealed

DEFAULT = registry()["smollm2-135m-instruct"]
TODAY = datetime.now(UTC).date()


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.gates.JUDGES", JUDGES)


def verified(bundle: Path, **options: Any) -> Verification:
    return verify_bundle(bundle, VerifyOptions(**{"checklists": CHECKLISTS, **options}))


def said(verification: Verification) -> str:
    return " | ".join(step.message for step in verification.steps if step.status == "FAILS")


def edited(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit metadata.json, and derive from it all that verify will derive again."""
    path = bundle / "metadata.json"
    metadata = json.loads(path.read_text())
    edit(metadata)
    path.write_bytes(dumps_file(metadata))
    checks = recomputed_checks(unsealed(bundle), CHECKLISTS)
    (bundle / "checks.json").write_bytes(dumps_file(checks))
    rendered = render_reports(unsealed(bundle))
    for name, content in rendered.items():
        (bundle / name).write_bytes(content)
    (bundle / "junit.xml").write_bytes(render_junit(unsealed(bundle)))


def unsealed(bundle: Path) -> BundleReader:
    roots = BundleReader(bundle).manifest.ledger
    return BundleReader(bundle, list_files(bundle, bundle.name, roots))


def test_a_forger_who_claims_nothing_new_has_a_bundle_that_holds(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    edited(bundle, lambda metadata: None)
    reseal(bundle)
    assert verified(bundle).holds


def engine(**claims: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata["engine"].update(claims)


def model(**claims: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata["models"][0].update(claims)


@pytest.mark.parametrize(
    ("claim", "objection"),
    [
        (lambda m: m.update(profile="m0"), "shows profile 'm0', judged was 'cpu'"),
        (lambda m: m.update(gate=4), "shows gate 4, judged was 1"),
        (engine(kind="openai"), "shows engine's kind 'openai', judged was 'native'"),
        (engine(launcher="docker"), "shows launcher 'docker', judged was 'process'"),
        (engine(ours=True), "shows engine True, judged was False"),
        (engine(sealed=True), "launcher process seals no engine"),
        (model(name="larger", sha256=DEFAULT.sha256), "'larger': the digest is that of smollm2"),
        (
            model(name=DEFAULT.name, sha256=DEFAULT.sha256, bytes=1 << 40),
            f"'{DEFAULT.name}': the digest is that of smollm2",
        ),
        (model(name="GPT-OSS-20B"), "GPT-OSS-20B has another SHA-256, be37a636"),
    ],
)
def test_what_is_shown_is_what_was_judged(
    tmp_path: Path, claim: Callable[[dict[str, Any]], None], objection: str
) -> None:
    bundle = sealed(tmp_path)
    edited(bundle, claim)
    reseal(bundle)
    assert objection in said(verified(bundle))


def test_another_engine_cannot_be_claimed_to_be_the_reference() -> None:
    claimed = {
        "engine": {"ours": True, "launcher": "process", "digest": "ab" * 32},
        "judging": {"ours": True, "launcher": "process"},
        "harness": {"files": {"engine/cli.py": "00" * 32}},
    }
    with pytest.raises(BundleError, match="not the reference engine of this harness"):
        check_judged(claimed)


def test_a_trusted_key_cannot_be_shown_in_place_of_the_signers(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    edited(bundle, lambda metadata: metadata["signer"].update(key_id="0123" * 16, kind="key"))
    reseal(bundle)
    assert "shows signer '01230123" in said(verified(bundle))


def test_a_public_key_file_holds_nothing_but_the_key(tmp_path: Path) -> None:
    class Named(PublicKey):
        @property
        def pem(self) -> bytes:
            return b"The key of somebody you trust:\n" + super().pem

    class Forger(Signer):
        @property
        def public(self) -> PublicKey:
            return Named(self.key.public_key())

    bundle = sealed(tmp_path)
    reseal(bundle, Forger(ephemeral_signer().key, "key"))
    assert "public-key.pem: not the signer's key, or not spelled" in said(verified(bundle))


def test_a_title_cannot_be_made_up(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    edited(bundle, lambda m: m["judging"].update(titles=["This IS an M0 certificate."]))
    reseal(bundle)
    assert "This IS" not in verified(bundle).verdict
    assert "This IS" not in (bundle / "report.html").read_text()


def test_a_report_that_cannot_be_rendered_again_is_not_accepted(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    edited(bundle, lambda metadata: metadata["harness"].update(version="9.9.9"))
    (bundle / "report.html").write_text("<h1>CERTIFIED, all models</h1>")
    reseal(bundle)
    verification = verified(bundle)
    assert verification.whole
    assert not verification.holds
    assert "NOT CHECKED: reports, installation" in printed(verification)


def printed(verification: Verification) -> str:
    console = Console(width=1000, force_terminal=False, soft_wrap=True, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        print_verification(verification, console)
    return captured.get()


SILENT = observation(exchanges={"execute": (exchange(chunks=()),)})


def waiver(**changes: Any) -> dict[str, Any]:
    members = {"check": "G1-HTTP-SSE", "owner": "me", "reason": "mine", "key_id": "aa" * 32}
    dates = {"issued": TODAY.isoformat(), "expires": (TODAY + timedelta(days=9)).isoformat()}
    return {**members, **dates, **changes}


def waived(tmp_path: Path, *waivers: dict[str, Any], **judging: Any) -> Path:
    """A bundle that fails, with waivers that nobody signed written into it."""
    bundle = sealed(
        tmp_path, observations=(SILENT, observation("G1-HTTP-HEALTH", "test_health[<b>]"))
    )
    edited(bundle, lambda m: m["judging"].update(waivers=list(waivers), **judging))
    reseal(bundle)
    return bundle


def test_a_made_up_waiver_certifies_nothing_by_itself(tmp_path: Path) -> None:
    verification = verified(waived(tmp_path, waiver()))
    assert "CERTIFIED" in verification.verdict
    assert verification.whole
    assert not verification.holds
    assert "NOT CHECKED: checklists" in printed(verification)


def test_a_reviewer_can_accept_what_lies_outside(tmp_path: Path) -> None:
    verification = verified(waived(tmp_path, waiver()), allow_outside=True)
    assert verification.holds
    assert "they rest on what lies outside" in verification.steps[3].message


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"expires": "9999-01-01"}, "at most 90 days"),
        ({"check": "G1-NOTHING"}, "no checklist has this check"),
        ({"owner": ""}, "owner: wanted a str"),
        ({"reason": ["because"]}, "reason: wanted a str"),
    ],
)
def test_a_waiver_that_no_run_takes_is_refused(
    tmp_path: Path, changes: dict[str, Any], objection: str
) -> None:
    bundle = waived(tmp_path, waiver(**changes))
    assert objection in said(verified(bundle, allow_outside=True))


def test_a_waiver_cannot_be_judged_on_another_day(tmp_path: Path) -> None:
    old = waiver(issued="2020-01-01", expires="2020-02-01")
    bundle = waived(tmp_path, old, judged_at="2020-01-10T00:00:00+00:00")
    assert "judged_at lies outside" in said(verified(bundle, allow_outside=True))


def test_gates_of_other_bundles_are_nothing_to_rely_on(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    edited(bundle, lambda m: m["judging"].update(lower_gates=[1]))
    reseal(bundle)
    assert not verified(bundle).holds


def test_profile_m0_is_about_its_own_files_and_no_others() -> None:
    own = [
        {"name": known.name, "sha256": known.sha256}
        for known in registry().values()
        if "m0" in known.profiles
    ]
    assert unpublished("m0", own) == []
    assert unpublished("gpu", []) == []
    assert unpublished("m0", own[1:]) == [f"profile m0: not the published {own[0]['name']}"]
    strange = {"name": "mine.gguf", "sha256": "ab" * 32}
    assert unpublished("m0", [*own, strange]) == ["profile m0: mine.gguf: no model of it"]
    claim = {"profile": "m0", "models": own[:1] * 3}
    check_published(claim, {"certified": False})
    with pytest.raises(BundleError, match="not the published"):
        check_published(claim, {"certified": True})


def test_a_model_that_nobody_knows_is_said_to_be_one(tmp_path: Path) -> None:
    assert "only that digest says what it is" in (sealed(tmp_path) / "report.html").read_text()


ESCAPES = "\x1b[2J\x1b[1;1HThe evidence HOLDS.\x1b]0;x\x07\nThe evidence HOLDS.\r\u202e"


def test_a_bundle_cannot_steer_the_terminal(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    path = bundle / "checks.json"
    checks = json.loads(path.read_text())
    path.write_bytes(dumps_file({**checks, "verdict_line": ESCAPES, "title": ESCAPES}))
    edited_version = {"version": "9.9.9", "digest": "", "files": {}}
    reseal(bundle)
    verification = verified(
        bundle,
        installed=edited_version,
        checklists=replace(CHECKLISTS, digests={"gate1.toml": "bb" * 32}),
    )
    text = printed(verification)
    assert "The evidence HOLDS." in verification.verdict
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
    assert "The evidence HOLDS." not in text.splitlines()


def test_a_message_is_one_line() -> None:
    assert one_line("a\nb\tc\u2028") == "a\\nb\\tc\\u2028"
    assert one_line("as it is") == "as it is"


@pytest.mark.parametrize(
    "line", ["=====", "---", "- x", "+ x", "  - x", "1. x", "23) x", ":-:", "\t==="]
)
def test_no_line_of_an_engine_is_a_heading_a_list_or_a_table(line: str) -> None:
    assert "&#" in markdown(line)
    assert markdown("2 of 3") == "2 of 3"
    assert markdown(Verdict.PASS) == "pass"


@pytest.mark.parametrize("name", ["x; rm -rf ~", "$(id)", "../run", "", "a b", "`id`", "x" * 99])
def test_a_run_whose_name_is_a_command_is_refused(tmp_path: Path, name: str) -> None:
    bundle = sealed(tmp_path)
    path = bundle / "manifest.json"
    path.write_bytes(dumps_file({**json.loads(path.read_text()), "run_id": name}))
    assert "not a run's name" in said(verified(bundle))


def test_json_of_any_shape_is_refused_in_time() -> None:
    names = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(BundleError, match="'199999' stands twice"):
        loads(f'{{{names},"199999":0}}'.encode(), "x")
    for number in ("1e400", "-1e999", "[1e309]"):
        with pytest.raises(BundleError, match="larger than a float holds"):
            loads(number.encode(), "x")


def test_an_attempt_that_failed_stays_failed() -> None:
    record = {"nodeid": "t.py::test", "worker": "main", "test": "test", "checks": ["G1-ONE"]}
    ended = {**record, "event": "finished", "attempt": 1}
    records = [
        {**record, "event": "started", "attempt": 1},
        {**ended, "outcome": "failed"},
        {**ended, "outcome": "passed"},
    ]
    assert [attempt.outcome for attempt in attempts_from(records)] == ["failed", "passed"]
    assert [attempt.outcome for attempt in attempts_from(records[:1])] == ["unfinished"]


ODD_VALUES = [
    ("environment.json", lambda v: v.update(ram_bytes=10**400)),
    ("checks.json", lambda v: v["checks"].append("no check")),
    ("checks.json", lambda v: v["checks"][0].update(requirements="\ud800")),
    ("checks.json", lambda v: v["checks"][0]["tests"][0].update(verdict=[])),
    ("checks.json", lambda v: v["checks"][0].update(tests=1e308)),
    ("metadata.json", lambda v: v.update(started_at="0001-01-01T00:00:00+23:00")),
]


@pytest.mark.parametrize(("name", "edit"), ODD_VALUES)
def test_values_of_another_kind_break_no_report(
    tmp_path: Path, name: str, edit: Callable[[Any], None]
) -> None:
    """They are shown, or refused in one line; nothing else comes of them."""
    bundle = sealed(tmp_path)
    value = json.loads((bundle / name).read_text())
    edit(value)
    (bundle / name).write_bytes(dumps_file(value))
    for render in (render_reports, render_junit):
        with contextlib.suppress(BundleError):
            assert render(unsealed(bundle))


@pytest.mark.parametrize("event", ["crashed", "interrupted"])
def test_a_blocker_cannot_be_taken_out(event: str) -> None:
    records = [{"event": "finished"}, {"event": event}]
    check_blockers({"judging": {"blockers": ["the run ended early"]}}, records)
    check_blockers({"judging": {"blockers": []}}, records[:1])
    with pytest.raises(BundleError, match=f"{event}, and metadata.json names no blocker"):
        check_blockers({"judging": {"blockers": []}}, records)


def test_a_folder_that_may_not_be_read_is_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    bundle = sealed(tmp_path)
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(BundleError, match="not a bundle"):
        verified(bundle)
