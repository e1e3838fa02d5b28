"""Signatures hold under tools that are not ours: openssl, securesystemslib, in-toto-attestation."""

import base64
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from google.protobuf import json_format
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement as in_toto
from in_toto_attestation.v1 import statement_pb2
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from harness.errors import SignatureError
from harness.keys import (
    KEY_VARIABLE,
    PASSPHRASE_VARIABLE,
    ephemeral_signer,
    generate_key,
    parse_public_key,
    public_path,
    read_private_key,
    read_public_key,
    signer_from_environment,
)
from harness.signing import (
    PAYLOAD_TYPE,
    parse_signed_statement,
    pre_authentication_encoding,
    sign_statement,
)
from harness.statement import TEST_RESULT_TYPE
from tests.unit.bundles import sealed

ATTESTATIONS = ("attestation.test-result.sigstore.json", "attestation.haikugate.sigstore.json")


def statement_of(bundle: Path, name: str) -> dict:
    envelope = json.loads((bundle / name).read_text())["dsseEnvelope"]
    return json.loads(base64.b64decode(envelope["payload"]))


def test_the_encoding_is_that_of_the_dsse_specification() -> None:
    # the example of secure-systems-lab/dsse protocol.md
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@pytest.mark.parametrize("name", ATTESTATIONS)
def test_openssl_verifies_the_signature(tmp_path: Path, name: str) -> None:
    bundle = sealed(tmp_path)
    envelope = json.loads((bundle / name).read_text())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    key = ["openssl", "dgst", "-sha256", "-verify", str(bundle / "public-key.pem")]
    for content, code in ((payload, 0), (payload + b" ", 1)):
        (tmp_path / "pae").write_bytes(pre_authentication_encoding(PAYLOAD_TYPE, content))
        command = [*key, "-signature", str(tmp_path / "sig"), str(tmp_path / "pae")]
        assert subprocess.run(command, capture_output=True).returncode == code


@pytest.mark.parametrize("name", ATTESTATIONS)
def test_securesystemslib_verifies_the_envelope(tmp_path: Path, name: str) -> None:
    bundle = sealed(tmp_path)
    envelope = Envelope.from_dict(json.loads((bundle / name).read_text())["dsseEnvelope"])
    pem = (bundle / "public-key.pem").read_bytes()
    key_id = parse_public_key(pem, "x").key_id
    key = SSlibKey.from_crypto(serialization.load_pem_public_key(pem), keyid=key_id)
    assert envelope.verify([key], threshold=1)


@pytest.mark.parametrize("name", ATTESTATIONS)
def test_in_toto_accepts_the_statement(tmp_path: Path, name: str) -> None:
    bundle = sealed(tmp_path)
    message = json_format.ParseDict(statement_of(bundle, name), statement_pb2.Statement())
    statement = in_toto.Statement.copy_from_pb(message)
    statement.validate()
    assert {subject.name for subject in message.subject} >= {"manifest.json", "report.html"}


def test_the_predicate_is_a_test_result(tmp_path: Path) -> None:
    statement = statement_of(sealed(tmp_path), ATTESTATIONS[0])
    assert statement["predicateType"] == TEST_RESULT_TYPE
    result = json_format.ParseDict(statement["predicate"], test_result_pb2.TestResult())
    assert result.result == "PASSED"
    assert list(result.passed_tests) == ["G1-HTTP-HEALTH", "G1-HTTP-SSE"]


def test_subjects_are_the_files_the_engine_and_the_model(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    subjects = {
        s["name"]: s["digest"]["sha256"] for s in statement_of(bundle, ATTESTATIONS[1])["subject"]
    }
    digest = subprocess.run(["sha256sum", bundle / "manifest.json"], capture_output=True, text=True)
    assert subjects["manifest.json"] == digest.stdout.split()[0]
    assert subjects["engine:native"] == "ab" * 32
    assert "cd" * 32 in subjects.values()
    assert ATTESTATIONS[0] in subjects


def test_another_spelling_of_the_bundle_is_refused() -> None:
    content = sign_statement({"a": 1}, ephemeral_signer()).to_bytes()
    assert parse_signed_statement(content, "x").to_bytes() == content
    members = json.loads(content)
    for other in (json.dumps(members).encode(), content + b"\n", content.replace(b"v0.3", b"v0.2")):
        with pytest.raises(SignatureError, match="spelled"):
            parse_signed_statement(other, "x")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"dsseEnvelope":[]}', b"[" * 100_000])
def test_what_is_no_bundle_is_refused(content: bytes) -> None:
    with pytest.raises(SignatureError, match=r"^x: not a Sigstore bundle"):
        parse_signed_statement(content, "x")


def test_another_key_does_not_verify() -> None:
    signed = sign_statement({"a": 1}, ephemeral_signer())
    with pytest.raises(SignatureError, match="wanted"):
        signed.verify(ephemeral_signer().public, "x")


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_generated_key_signs_and_is_private(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key.pem"
    public = generate_key(path, passphrase).public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_public_key(public_path(path)) == public
    message = b"what is signed"
    public.verify(read_private_key(path, passphrase).sign(message), message)
    with pytest.raises(SignatureError, match="exists already"):
        generate_key(path, passphrase)


def test_a_wrong_or_missing_passphrase_says_so(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    generate_key(path, "right")
    with pytest.raises(SignatureError, match="wrong passphrase"):
        read_private_key(path, "wrong")
    with pytest.raises(SignatureError, match=f"needs a passphrase .{PASSPHRASE_VARIABLE}."):
        read_private_key(path)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    generate_key(path)
    path.chmod(0o640)
    with pytest.raises(SignatureError, match="chmod 600"):
        read_private_key(path)


def test_other_kinds_of_key_are_refused(tmp_path: Path) -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        path = tmp_path / "other.pem"
        path.unlink(missing_ok=True)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.touch(0o600)
        path.write_bytes(pem)
        with pytest.raises(SignatureError, match="ECDSA P-256"):
            read_private_key(path)


def test_openssl_made_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([*make, "-out", path], check=True, capture_output=True)
    path.chmod(0o600)
    public = subprocess.run(
        ["openssl", "pkey", "-in", path, "-pubout"], check=True, capture_output=True
    ).stdout
    assert read_private_key(path).public == parse_public_key(public, "x")


def test_the_environment_names_the_key(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "key.pem"
    signer = generate_key(path, "secret")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "secret")
    for value in (str(path), path.read_text()):
        monkeypatch.setenv(KEY_VARIABLE, value)
        found = signer_from_environment()
        assert (found.public, found.kind) == (signer.public, "key")
    monkeypatch.delenv(KEY_VARIABLE)
    assert signer_from_environment().kind == "ephemeral"


def test_a_private_key_never_enters_the_bundle(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    for path in bundle.rglob("*"):
        if path.is_file():
            assert b"PRIVATE KEY" not in path.read_bytes()
    assert os.listdir(tmp_path) == [bundle.name]
