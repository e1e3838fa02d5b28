"""Steps 1 to 3 of verify: signatures, files, the ledger's chains."""

import hashlib
from collections.abc import Mapping
from typing import Any

from harness.bundle_reader import OBSERVATION_SUFFIX, BundleReader, read_bounded
from harness.errors import BundleError, SignatureError
from harness.keys import MAX_PEM_BYTES, PublicKey, parse_public_key
from harness.ledger import check_chains
from harness.manifest import (
    CERTIFICATE,
    INCOMPLETE,
    MANIFEST,
    MAX_FILE_BYTES,
    SUMS,
    TEST_RESULT,
    UNLISTED,
    Listed,
    digest_file,
    walk,
)
from harness.observation import Json
from harness.signing import parse_signed_statement
from harness.statement import CERTIFICATE_TYPE, TEST_RESULT_TYPE, certificate, test_result
from harness.strict_json import MAX_BYTES
from harness.verification import Case, Step

PREDICATES = {TEST_RESULT: TEST_RESULT_TYPE, CERTIFICATE: CERTIFICATE_TYPE}


def signing_key(case: Case) -> PublicKey:
    """The reviewer's key, else the bundle's own."""
    if case.options.public_key is not None:
        return case.options.public_key
    name = "public-key.pem"
    return parse_public_key(read_bounded(case.bundle.path, name, MAX_PEM_BYTES), name)


def signed_statements(case: Case) -> dict[str, dict[str, Json]]:
    """Both statements by file, their signatures checked; raises SignatureError."""
    key = signing_key(case)
    statements = {}
    for name, predicate_type in PREDICATES.items():
        content = read_bounded(case.bundle.path, name, MAX_BYTES)
        statement = parse_signed_statement(content, name).verify(key, name)
        if statement.get("predicateType") != predicate_type:
            raise SignatureError(f"{name}: wanted predicate {predicate_type}")
        statements[name] = statement
    return statements


def check_signature(case: Case) -> str:
    """Step 1: one key, the reviewer's or the bundle's, signs both statements of this manifest."""
    got = hashlib.sha256(read_bounded(case.bundle.path, MANIFEST, MAX_BYTES)).hexdigest()
    for name, statement in signed_statements(case).items():
        signed = _subjects(statement, name).get(MANIFEST)
        if signed != got:
            raise BundleError(f"{MANIFEST}: got SHA-256 {got}, {name} signs {signed}")
    return f"two statements, ECDSA P-256, key {signing_key(case).key_id}"


def _subjects(statement: Mapping[str, Any], where: str) -> dict[str, str]:
    try:
        return {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    except (KeyError, TypeError) as error:
        raise BundleError(f"{where}: malformed subjects: {error!r}") from error


def _wanted_subjects(bundle: BundleReader, name: str) -> dict[str, str]:
    files = (MANIFEST, "report.html", *((TEST_RESULT,) if name == CERTIFICATE else ()))
    return {
        path: hashlib.sha256(read_bounded(bundle.path, path)).hexdigest()
        for path in files
        if path in UNLISTED or bundle.has(path)
    }


def check_files(case: Case) -> str:
    """Step 2: the signed subjects, the manifest and the folder agree; nothing else lies there."""
    bundle = case.bundle
    found = {path: status.st_size for path, status in walk(bundle.path)}
    manifest = bundle.manifest
    if manifest.run_id != bundle.metadata.get("run_id"):
        raise BundleError(f"{MANIFEST}: run id differs from metadata.json's")
    _compare_names(found, set(manifest.files))
    for listed in manifest.files.values():
        _compare_file(bundle, listed, found[listed.path])
    if read_bounded(bundle.path, SUMS, MAX_BYTES) != manifest.sums():
        raise BundleError(f"{SUMS}: differs from what {MANIFEST} lists")
    _compare_statements(case)
    return f"{len(manifest.files)} files, none missing, none unlisted"


def _compare_names(found: Mapping[str, int], listed: set[str]) -> None:
    extra = sorted(set(found) - listed - UNLISTED - {INCOMPLETE})
    missing = sorted((listed | UNLISTED) - set(found))
    if missing:
        raise BundleError(f"{missing[0]!a}: missing ({len(missing)} in all)")
    if extra:
        raise BundleError(f"{extra[0]!a}: not listed in {MANIFEST} ({len(extra)} in all)")


def _compare_file(bundle: BundleReader, listed: Listed, size_bytes: int) -> None:
    if size_bytes != listed.bytes or size_bytes > MAX_FILE_BYTES:
        raise BundleError(f"{listed.path}: wanted {listed.bytes} bytes, got {size_bytes}")
    got = digest_file(bundle.path / listed.path)
    if got != listed.sha256:
        raise BundleError(f"{listed.path}: wanted SHA-256 {listed.sha256}, got {got}")


def _compare_statements(case: Case) -> None:
    bundle = case.bundle
    statements = signed_statements(case)
    for name, statement in statements.items():
        signed = _subjects(statement, name)
        for path, digest in _wanted_subjects(bundle, name).items():
            if signed.get(path) != digest:
                raise BundleError(f"{path}: got SHA-256 {digest}, {name} signs {signed.get(path)}")
    _compare_signer(case)
    if case.same_version:
        _compare_predicates(bundle, statements)


def _compare_signer(case: Case) -> None:
    """The key that the bundle shows is the key that signed it, in its one spelling."""
    key, shown = signing_key(case), case.bundle.metadata.get("signer") or {}
    if shown.get("key_id") != key.key_id:
        raise BundleError(f"metadata.json: shows signer {shown.get('key_id')!a:.80}: another key")
    if read_bounded(case.bundle.path, "public-key.pem", MAX_PEM_BYTES) != key.pem:
        raise BundleError("public-key.pem: not the signer's key, or not spelled as haikugate does")


def _compare_predicates(bundle: BundleReader, statements: Mapping[str, Json]) -> None:
    first = read_bounded(bundle.path, TEST_RESULT, MAX_BYTES)
    wanted = {
        TEST_RESULT: test_result(bundle.manifest, bundle.metadata, bundle.checks),
        CERTIFICATE: certificate(bundle.manifest, bundle.metadata, bundle.checks, first),
    }
    for name, statement in wanted.items():
        if statements[name] != statement:
            raise BundleError(f"{name}: the signed statement differs from checks.json and metadata")


def check_ledger(case: Case) -> str:
    """Step 3: the chains are whole and end where the manifest says, all observations in them."""
    bundle = case.bundle
    roots = check_chains(bundle.ledger, bundle.run_id, "attempts.ndjson")
    if roots != dict(bundle.manifest.ledger):
        raise BundleError("attempts.ndjson: a chain does not end where manifest.json says")
    chained = [
        (entry.record.get("path"), entry.record.get("sha256"))
        for entry in bundle.ledger
        if entry.record.get("kind") == "observation"
    ]
    listed = {
        path: file.sha256
        for path, file in bundle.manifest.files.items()
        if path.startswith("transcripts/") and path.endswith(OBSERVATION_SUFFIX)
    }
    if len(chained) != len(listed) or dict(chained) != listed:
        odd = sorted(str(path) for path in set(listed) ^ {path for path, _ in chained})
        raise BundleError(f"attempts.ndjson: observations differ from transcripts/: {odd[:1]}")
    return f"{len(bundle.ledger)} records in {len(roots)} chains, {len(chained)} observations"


FILE_STEPS = (
    Step(1, "signature", check_signature),
    Step(2, "files", check_files),
    Step(3, "ledger", check_ledger),
)
