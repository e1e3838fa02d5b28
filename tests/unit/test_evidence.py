"""What is written to a bundle is read back without loss, is written once, and is bounded."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.evidence import BundleWriter, PartWriter, write_once
from harness.manifest import INCOMPLETE, check_path
from harness.observation import Chunk, Exchange, Observation
from harness.strict_json import dumps_file, dumps_line, loads, loads_lines
from harness.transcript import decode_exchanges, encode_exchanges, normalized, slug
from tests.unit.bundles import exchange, observation, sealed

TEXT = st.text(max_size=20)
MOMENT = st.integers(0, 2**63)
HEADERS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
EXCHANGES = st.builds(
    Exchange,
    method=TEXT,
    path=TEXT,
    request_headers=HEADERS,
    request_body=st.binary(max_size=40),
    sent_ns=MOMENT,
    status=st.none() | st.integers(100, 999),
    response_headers=HEADERS,
    head_ns=st.none() | MOMENT,
    chunks=st.lists(st.builds(Chunk, MOMENT, st.binary(max_size=40)), max_size=4).map(tuple),
    closed_ns=st.none() | MOMENT,
    closed_by=TEXT,
    error=st.none() | TEXT,
)
OBSERVATIONS = st.builds(
    Observation,
    check=st.text(min_size=1, max_size=30),
    test=st.text(min_size=1, max_size=120),
    attempt=st.integers(1, 9),
    exchanges=st.dictionaries(TEXT, st.lists(EXCHANGES, max_size=2).map(tuple), max_size=2),
    facts=st.dictionaries(TEXT, JSON, max_size=3),
)


@given(st.lists(EXCHANGES, max_size=4).map(tuple))
def test_exchanges_survive_the_round_trip(exchanges: tuple[Exchange, ...]) -> None:
    assert decode_exchanges(encode_exchanges(exchanges), "x") == exchanges


@given(OBSERVATIONS)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_observations_survive_the_round_trip(seen: Observation) -> None:
    assert normalized(seen) == seen


def test_a_sealed_bundle_gives_back_what_was_observed(tmp_path: Path) -> None:
    big = observation("G1-A", "test_a[µ/..]", facts={"log": "x" * 10_000, "bytes": [1, 2]})
    binary = exchange(chunks=(Chunk(2_000, bytes(range(256))),), error="broke off")
    other = observation("G1-B", "test_b", exchanges={"all": (binary, exchange()), "none": ()})
    writer = BundleWriter.create(tmp_path, "run")
    part = writer.part("main")
    paths = [part.observation(seen, "suites/t.py::t") for seen in (big, other)]
    assert writer.recorded()[0].observation == big
    assert sorted(seen.path for seen in writer.recorded()) == sorted(paths)
    bundle = BundleReader(sealed(tmp_path, observations=()))
    assert list(bundle.observations()) == []


def test_tuples_and_keys_are_normalized_as_they_will_be_read() -> None:
    seen = normalized(observation(facts={"pair": (1, 2), "by_number": {1: "a"}}))
    assert seen.facts == {"pair": [1, 2], "by_number": {"1": "a"}}


def test_checks_that_share_a_transcript_share_its_file(tmp_path: Path) -> None:
    part = BundleWriter.create(tmp_path, "run").part("main")
    fact = "long " * 1000
    for check in ("G1-A", "G1-B", "G1-C"):
        part.observation(observation(check, facts={"log": fact}), "n")
    files = [path for path in (tmp_path / "run/transcripts").rglob("*") if path.is_file()]
    assert len(files) == 3 + 2
    seen = BundleWriter(tmp_path / "run").recorded()
    assert {s.observation.facts["log"] for s in seen} == {fact}


def test_evidence_is_written_once(tmp_path: Path) -> None:
    part = BundleWriter.create(tmp_path, "run").part("main")
    part.observation(observation(), "n")
    with pytest.raises(BundleError, match="written once"):
        part.observation(observation(), "n")


def test_a_bundle_of_the_same_name_is_refused(tmp_path: Path) -> None:
    BundleWriter.create(tmp_path, "run")
    with pytest.raises(BundleError, match="exists"):
        BundleWriter.create(tmp_path, "run")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 81, "é", "a\n"])
def test_a_run_id_that_is_no_plain_name_is_refused(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setenv("HAIKUGATE_RUN_ID", name or "..")
    with pytest.raises(BundleError, match="run id"):
        BundleWriter.create(tmp_path, name or None)


def test_the_environment_names_a_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HAIKUGATE_RUN_ID", "nightly-7")
    assert BundleWriter.create(tmp_path).run_id == "nightly-7"


def test_workers_write_their_own_chains(tmp_path: Path) -> None:
    writer = BundleWriter.create(tmp_path, "run")
    for worker in ("gw0", "gw1"):
        part = PartWriter(writer.path, worker)
        part.attempt({"event": "finished", "worker": worker})
        part.close()
    assert [record["worker"] for record in writer.attempts()] == ["gw0", "gw1"]


def test_facts_that_are_not_json_are_refused(tmp_path: Path) -> None:
    part = BundleWriter.create(tmp_path, "run").part("main")
    for fact in (float("nan"), {1, 2}, b"bytes"):
        with pytest.raises(BundleError, match="evidence must be JSON"):
            part.observation(observation(facts={"bad": fact}), "n")


def test_a_full_disk_leaves_one_clear_line(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    part = BundleWriter.create(tmp_path, "run").part("main")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left on device; free space or set") as error:
        write_once(tmp_path / "run/x.json", b"{}")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("os.write", full)
    with pytest.raises(BundleError, match="No space left on device"):
        part.attempt({"event": "started"})
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_an_unfinished_run_stays_incomplete(tmp_path: Path) -> None:
    part = BundleWriter.create(tmp_path, "run").part("main")
    part.observation(observation(), "n")
    assert BundleReader(tmp_path / "run").incomplete
    with pytest.raises(BundleError, match="INCOMPLETE"):
        list(BundleReader(tmp_path / "run").observations())


def test_a_sealed_bundle_holds_the_files_of_the_design(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    top = {name for name in names if "/" not in name}
    assert top == {
        "manifest.json", "SHA256SUMS", "metadata.json", "environment.json", "checks.json",
        "trace.json", "attempts.ndjson", "seeds.ndjson", "timings.json", "telemetry.parquet",
        "engine.ndjson", "junit.xml", "report.md", "report.html", "README.md", "public-key.pem",
        "attestation.test-result.sigstore.json", "attestation.haikugate.sigstore.json",
    }  # fmt: skip
    assert not (bundle / INCOMPLETE).exists()
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=bundle, check=True)


@given(st.text(), st.text())
def test_different_names_have_different_slugs(one: str, other: str) -> None:
    assert (slug(one) == slug(other)) == (one == other)
    check_path(slug(one))


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "C:/x", "a\nb", "a\0b",
     "a" * 1025, "\u202egpj.exe"],
)  # fmt: skip
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle"):
        check_path(path)


@given(JSON)
def test_strict_json_survives_the_round_trip(value) -> None:
    assert loads(dumps_line(value), "x") == value
    assert loads(dumps_file(value), "x") == value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a":1,"a":2}', "twice"),
        (b"NaN", "NaN is not JSON"),
        (b"[Infinity]", "Infinity"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 10_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
    ],
)
def test_malformed_json_is_refused_by_place(content: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=said) as error:
        loads(content, "checks.json")
    assert str(error.value).startswith("checks.json: ")


def test_a_cut_line_is_refused() -> None:
    with pytest.raises(BundleError, match="cut off"):
        list(loads_lines(b"{}\n{", "x"))


@pytest.mark.parametrize(
    "lines",
    [
        b'{"closed":{"ns":1,"by":"server","error":null}}\n',
        b'[1,"x"]\n',
        b'{"request":{"method":"GET","path":"/","headers":[],"body":"","sent_ns":1}}\n',
        b'{"request":{"method":"GET","path":"/","headers":[],"body":"","sent_ns":"1"}}\n',
        b'{"request":{"method":1,"path":"/","headers":[],"body":"","sent_ns":1}}\n',
        b'{"request":{"method":"GET","path":"/","headers":[["a"]],"body":"","sent_ns":1}}\n',
        b'{"request":{"method":"GET","path":"/","headers":[],"body":{"base64":"*"},"sent_ns":1}}\n',
        b'{"other":{}}\n',
        b"3\n",
    ],
)
def test_a_malformed_transcript_is_refused_by_place(lines: bytes) -> None:
    with pytest.raises(BundleError, match=r"^t\.ndjson"):
        decode_exchanges(lines, "t.ndjson")
