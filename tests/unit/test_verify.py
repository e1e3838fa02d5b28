"""A bundle verifies as it was sealed, and no attack on it does."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.evidence import BundleWriter
from harness.keys import ephemeral_signer, generate_key
from harness.strict_json import dumps_file
from harness.verification import Verification, VerifyOptions
from harness.verify import verify_bundle
from tests.unit.bundles import (
    CHECKLISTS,
    JUDGES,
    NONCE,
    SEEN,
    exchange,
    observation,
    reseal,
    sealed,
    statuses,
)

SIGNER = ephemeral_signer()


@pytest.fixture(autouse=True)
def _judges(monkeypatch) -> None:
    monkeypatch.setattr("harness.gates.JUDGES", JUDGES)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.gates.JUDGES", JUDGES)
        yield sealed(tmp_path_factory.mktemp("pristine"), SIGNER)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def verified(bundle: Path, **changes) -> Verification:
    return verify_bundle(bundle, VerifyOptions(**{"checklists": CHECKLISTS, **changes}))


def failures(bundle: Path, **changes) -> str:
    steps = verified(bundle, **changes).steps
    return " | ".join(f"{s.number}: {s.message}" for s in steps if s.status == "FAILS")


def edited(bundle: Path, name: str, edit: Callable[[dict], None]) -> None:
    value = json.loads((bundle / name).read_text())
    edit(value)
    (bundle / name).write_bytes(dumps_file(value))


def test_a_sealed_bundle_holds(bundle: Path) -> None:
    verification = verified(bundle)
    assert verification.holds, failures(bundle)
    assert verification.identity.startswith("INTEGRITY ONLY, identity unknown")
    assert "CERTIFIED" in verification.verdict
    assert set(statuses(verification.steps)) == set(range(1, 11))
    assert statuses(verification.steps)[9] == "not checked"


def test_a_trusted_key_gives_an_identity(tmp_path: Path) -> None:
    signer = generate_key(tmp_path / "key.pem")
    bundle = sealed(tmp_path / "proofs", signer)
    verification = verified(bundle, public_key=signer.public)
    assert verification.holds
    assert verification.identity == f"signed by the trusted key {signer.public.key_id}"
    other = failures(bundle, public_key=ephemeral_signer().public)
    assert "attestation.test-result.sigstore.json: signed by key" in other


def test_a_not_certified_run_verifies_as_such(tmp_path: Path) -> None:
    silent = observation(exchanges={"execute": (exchange(chunks=()),)})
    verification = verified(sealed(tmp_path, observations=(silent, SEEN[1])))
    assert verification.holds
    assert (
        "NOT CERTIFIED: 1 of 2 applicable checks passed, 0 not run, 1 fail" in verification.verdict
    )


def every_file(bundle: Path) -> list[str]:
    files = (path for path in bundle.rglob("*") if path.is_file())
    return sorted(path.relative_to(bundle).as_posix() for path in files)


def test_one_flipped_byte_in_any_file_is_named(bundle: Path) -> None:
    draw = random.Random(7)
    for name in every_file(bundle):
        content = (bundle / name).read_bytes()
        places = {0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(4))}
        for place in places:
            broken = bytearray(content)
            broken[place] ^= 1 << draw.randrange(8)
            (bundle / name).write_bytes(broken)
            said = failures(bundle)
            assert name in said, f"{name} byte {place}: {said}"
        (bundle / name).write_bytes(content)
    assert verified(bundle).holds


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS",
    "attestation.test-result.sigstore.json", "attestation.haikugate.sigstore.json"])  # fmt: skip
def test_every_byte_of_the_unlisted_files_counts(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    for place in range(0, len(content), max(1, len(content) // 60)):
        for flip in (0x01, 0x20, 0x80):
            broken = bytearray(content)
            broken[place] ^= flip
            (bundle / name).write_bytes(broken)
            assert name in failures(bundle), f"byte {place} ^ {flip}"


def add(bundle: Path) -> None:
    (bundle / "extra.txt").write_text("more")


def add_hidden(bundle: Path) -> None:
    (bundle / "plots").mkdir(exist_ok=True)
    (bundle / "plots" / ".hidden").write_text("more")


def remove(bundle: Path) -> None:
    (bundle / "trace.json").unlink()


def rename(bundle: Path) -> None:
    (bundle / "trace.json").rename(bundle / "trace2.json")


def link(bundle: Path) -> None:
    (bundle / "trace.json").rename(bundle.parent / "elsewhere.json")
    (bundle / "trace.json").symlink_to(bundle.parent / "elsewhere.json")


def link_folder(bundle: Path) -> None:
    (bundle / "transcripts").rename(bundle.parent / "elsewhere")
    (bundle / "transcripts").symlink_to(bundle.parent / "elsewhere")


def pipe(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")


def huge(bundle: Path) -> None:
    os.truncate(bundle / "checks.json", 2 << 30)


def huge_manifest(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", 2 << 30)


def huge_extra(bundle: Path) -> None:
    (bundle / "blob").touch()
    os.truncate(bundle / "blob", 2 << 30)


def truncate(bundle: Path) -> None:
    os.truncate(bundle / "engine.ndjson", 0)


def not_utf8_name(bundle: Path) -> None:
    Path(os.fsdecode(os.fsencode(bundle) + b"/\xff")).write_text("x")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (add, "'extra.txt': not listed"),
        (add_hidden, ".hidden': not listed"),
        (remove, "'trace.json': missing"),
        (rename, "'trace.json': missing"),
        (link, "trace.json': a link"),
        (link_folder, "transcripts': a link"),
        (pipe, "pipe': a link or special file"),
        (huge, "checks.json: wanted"),
        (huge_manifest, "manifest.json: larger than"),
        (huge_extra, "'blob': not listed"),
        (truncate, "engine.ndjson: wanted"),
        (not_utf8_name, "not listed"),
    ],
)
def test_an_attack_on_the_folder_is_refused(bundle: Path, attack, said: str) -> None:
    attack(bundle)
    assert said in failures(bundle)
    failures(bundle).encode()


@pytest.mark.parametrize("name", ["attestation.test-result.sigstore.json",
    "attestation.haikugate.sigstore.json"])  # fmt: skip
def test_neither_statement_can_be_dropped_or_doubled(bundle: Path, name: str) -> None:
    other = next(p for p in bundle.glob("attestation.*") if p.name != name)
    shutil.copy(other, bundle / name)
    assert name in failures(bundle)
    (bundle / name).unlink()
    assert name in failures(bundle)


def test_a_statement_of_another_bundle_does_not_fit(bundle: Path, tmp_path: Path) -> None:
    other = sealed(tmp_path / "other", SIGNER, run_id="run-2")
    for name in ("attestation.test-result.sigstore.json", "attestation.haikugate.sigstore.json"):
        shutil.copy(other / name, bundle / name)
    assert "manifest.json: got SHA-256" in failures(bundle)


def test_one_statement_of_another_bundle_does_not_fit(bundle: Path, tmp_path: Path) -> None:
    other = sealed(tmp_path / "other", SIGNER, run_id="run-2")
    name = "attestation.test-result.sigstore.json"
    shutil.copy(other / name, bundle / name)
    assert "got SHA-256" in failures(bundle)


def test_a_swapped_key_does_not_fit(bundle: Path) -> None:
    (bundle / "public-key.pem").write_bytes(ephemeral_signer().public.pem)
    said = failures(bundle)
    assert "attestation.test-result.sigstore.json: signed by key" in said
    assert "public-key.pem: wanted SHA-256" in said


def claim_pass(bundle: Path) -> None:
    def edit(checks: dict) -> None:
        checks["checks"][0] |= {"verdict": "pass", "message": "fine"}

    edited(bundle, "checks.json", edit)


def claim_certified(bundle: Path) -> None:
    edited(bundle, "checks.json", lambda checks: checks.update(certified=True))


def claim_numbers(bundle: Path) -> None:
    def edit(checks: dict) -> None:
        checks["checks"][0]["tests"][0]["numbers"]["bytes"] += 1

    edited(bundle, "checks.json", edit)


def claim_fraction(bundle: Path, more: float = 1e-7) -> None:
    def edit(checks: dict) -> None:
        checks["checks"][0]["tests"][0]["numbers"]["kib"] += more

    edited(bundle, "checks.json", edit)


def drop_check(bundle: Path) -> None:
    edited(bundle, "checks.json", lambda checks: checks["checks"].pop())


def claim_checklist(bundle: Path) -> None:
    edited(bundle, "metadata.json", lambda m: m["gate_files"].update({"gate1.toml": "00" * 32}))


def claim_suite(bundle: Path) -> None:
    edited(bundle, "metadata.json", lambda m: m["harness"]["files"].update({"suites/x.py": "00"}))


def claim_future(bundle: Path) -> None:
    edited(bundle, "metadata.json", lambda m: m.update(ended_at="2999-01-01T00:00:00+00:00"))


def claim_no_time(bundle: Path) -> None:
    edited(bundle, "metadata.json", lambda m: m.update(ended_at="yesterday"))


def edit_report(bundle: Path) -> None:
    path = bundle / "report.html"
    path.write_bytes(path.read_bytes().replace(b"NOT", b"NOW", 1) + b"<!-- -->")


def edit_trace(bundle: Path) -> None:
    edited(bundle, "trace.json", lambda trace: trace["tests"].pop())


def edit_timings(bundle: Path) -> None:
    path = bundle / "timings.json"
    path.write_bytes(path.read_bytes().replace(b'"tokens":2', b'"tokens":3', 1))


def cut_ledger(bundle: Path) -> None:
    path = bundle / "attempts.ndjson"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def empty_ledger(bundle: Path) -> None:
    (bundle / "attempts.ndjson").write_bytes(b"")


def edit_transcript(bundle: Path) -> None:
    path = next(bundle.glob("transcripts/*/*/1.execute.ndjson"))
    path.write_bytes(path.read_bytes().replace(b"Once", b"Then"))


def edit_observation(bundle: Path) -> None:
    path = next(bundle.glob("transcripts/*/*/1.observation.json"))
    path.write_bytes(path.read_bytes().replace(b"test_", b"tess_"))


def drop_observation(bundle: Path) -> None:
    next(bundle.glob("transcripts/*/*/1.observation.json")).unlink()


def nest_checks(bundle: Path) -> None:
    (bundle / "trace.json").write_bytes(b"[" * 300_000)


def odd_metadata(bundle: Path) -> None:
    edited(bundle, "metadata.json", lambda m: m.update(judging=[1]))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (claim_pass, "G1-HTTP-SSE: wanted fail, got pass"),
        (claim_certified, "certified: differs"),
        (claim_numbers, "G1-HTTP-SSE: tests differs"),
        (claim_fraction, "G1-HTTP-SSE: tests differs"),
        (drop_check, "not the checks in scope: G1-KERNEL-EMBED"),
        (claim_checklist, "gate1.toml is not the checklist installed here"),
        (claim_suite, "suites/x.py: not the file installed here"),
        (claim_future, "lies in the future"),
        (claim_no_time, "ended_at is not a time"),
        (edit_report, "report.html: differs"),
        (edit_trace, "trace.json: differs"),
        (edit_timings, "timings.json: differs"),
        (cut_ledger, "a chain does not end"),
        (empty_ledger, "a chain does not end"),
        (edit_transcript, "1.execute.ndjson: wanted SHA-256"),
        (edit_observation, "observations differ"),
        (drop_observation, "observations differ"),
        (nest_checks, "trace.json: JSON nested too deeply"),
        (odd_metadata, "malformed"),
    ],
)
def test_a_forgery_signed_again_is_caught_by_recomputing(tmp_path: Path, attack, said: str) -> None:
    silent = observation(exchanges={"execute": (exchange(chunks=()),)})
    bundle = sealed(tmp_path, observations=(silent, SEEN[1]))
    if attack is edit_timings:
        bundle = sealed(tmp_path, run_id="run-2")
    attack(bundle)
    reseal(bundle)
    assert said in failures(bundle), failures(bundle)


def test_the_last_bit_of_a_fraction_may_be_another_machines(bundle: Path) -> None:
    """exp() and sum() end otherwise on other processors and other Pythons."""
    before = (bundle / "checks.json").read_bytes()
    claim_fraction(bundle, 1e-15)
    assert (bundle / "checks.json").read_bytes() != before
    reseal(bundle)
    assert not [said for said in failures(bundle) if "tests differs" in said]


def test_names_that_leave_the_folder_are_refused(bundle: Path) -> None:
    for name in ("../evil", "/etc/passwd", "a/../../b", "plots\\x"):
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"][0]["path"] = name
        (bundle / "manifest.json").write_bytes(dumps_file(manifest))
        assert "leaves the bundle" in failures(bundle)


def test_evidence_outside_the_manifest_is_never_read(bundle: Path) -> None:
    for name in ("../secret", "manifest.json", "no-such-file"):
        with pytest.raises(BundleError):
            BundleReader(bundle).read(name)


def test_the_reviewers_nonce_is_compared(bundle: Path) -> None:
    named = verified(bundle, nonce=NONCE)
    assert (named.whole, named.unchecked) == (True, ["freshness"]), "no challenge is made from it"
    assert "did not use the nonce" in failures(bundle, nonce="another")


def test_an_old_bundle_expires_unless_allowed(bundle: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=400)
    assert "expired: 400 days old" in failures(bundle, now=later)
    assert verified(bundle, now=later, allow_expired=True).holds


def test_another_version_is_named_and_not_checked(bundle: Path) -> None:
    installed = {"version": "9.9.9", "digest": "", "files": {}}
    verification = verified(bundle, installed=installed)
    assert verification.whole
    assert verification.recomputed
    assert not verification.holds, "its report may say anything"
    assert verification.unchecked == ["reports", "installation"]
    for number in (7, 10):
        step = verification.steps[number - 1]
        assert (step.status, step.message) == (
            "not checked",
            "made by haikugate 0.1.0, this is 9.9.9",
        )


def test_other_checklists_of_another_version_are_not_checked(bundle: Path) -> None:
    verification = verified(
        bundle,
        installed={"version": "9.9.9", "digest": "", "files": {}},
        checklists=replace(CHECKLISTS, digests={"gate1.toml": "bb" * 32}),
    )
    assert [statuses(verification.steps)[n] for n in (4, 5)] == ["not checked"] * 2
    assert verification.whole
    assert not verification.holds


def test_an_unfinished_run_never_holds(tmp_path: Path) -> None:
    BundleWriter.create(tmp_path, "run").part("main")
    verification = verified(tmp_path / "run")
    assert not verification.holds
    assert verification.identity == "INCOMPLETE"


def test_a_marker_put_back_makes_it_incomplete(bundle: Path) -> None:
    (bundle / "INCOMPLETE").touch()
    assert not verified(bundle).holds


def test_clocks_never_run_backwards(tmp_path: Path) -> None:
    bundle = sealed(tmp_path, observations=(observation(exchanges={"e": (exchange(head_ns=1),)}),))
    assert "a clock runs backwards" in failures(bundle)


def test_replay_runs_when_asked(bundle: Path) -> None:
    def refuse(_: BundleReader) -> str:
        raise BundleError("token 3 of request 1 is not the reference's")

    assert verified(bundle, replay=lambda _: "2 tokens re-scored").holds
    assert "9: token 3" in failures(bundle, replay=refuse)


def test_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        verify_bundle(tmp_path / "nothing")
