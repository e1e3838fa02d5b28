"""Bundles in one file: packed and back, hostile ones refused, the examples kept here verified."""

import io
import lzma
import re
import tarfile
from pathlib import Path

import pytest

from harness import archive
from harness.archive import pack, unpacked
from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.verification import Status, Verification, VerifyOptions
from harness.verify import verify_bundle
from tests.unit.bundles import CHECKLISTS, sealed

EXAMPLES = sorted((Path(__file__).parents[2] / "proofs" / "examples").glob("*/bundle.tar.xz"))
EXAMPLE_BYTES = 2_000_000


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_a_bundle_comes_back_whole_and_its_archive_is_always_the_same(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    assert pack(bundle, tmp_path / "a.tar.xz") == (tmp_path / "a.tar.xz").stat().st_size
    pack(bundle, tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    with unpacked(tmp_path / "a.tar.xz") as folder:
        assert tree(folder) == tree(bundle)
    assert not folder.exists()
    with unpacked(bundle) as same:
        assert same == bundle


def hostile(path: Path, *names: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:xz") as made:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            content = b"x" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def refused(path: Path, says: str) -> None:
    with pytest.raises(BundleError, match=says), unpacked(path):
        pass


def test_hostile_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar.xz"
    for name in ("../x", "run/../../x", "/run/x", "run//x"):
        refused(hostile(path, name), "leaves the bundle")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        refused(hostile(path, "run/x", kind=kind), "no place in a bundle's archive")
    refused(hostile(path, "x"), "no place in a bundle's archive")
    refused(hostile(path, "a/x", "b/x"), "wanted one bundle, got 2")
    refused(hostile(path), "wanted one bundle, got 0")
    refused(hostile(path, "a/x", "a/x"), "cannot be read|can be read")
    path.write_bytes(b"no archive")
    refused(path, "not an archive")
    refused(tmp_path / "missing.tar.xz", "not an archive")
    monkeypatch.setattr(archive, "MAX_FILES", 1)
    refused(hostile(path, "a/x", "a/y"), "more than a bundle may")
    monkeypatch.setattr(archive, "MAX_FILES", 9)
    monkeypatch.setattr(archive, "MAX_BYTES", 1)
    refused(hostile(path, "a/x", "a/y"), "more than a bundle may")


def header(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """A member of tar as a forger writes it: the header may promise more than follows."""
    member = tarfile.TarInfo("run/x")
    member.type, member.size = kind, size
    padded = content.ljust(-(-len(content) // 512) * 512, b"\0")
    return member.tobuf(tarfile.GNU_FORMAT) + padded


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (header(tarfile.XHDTYPE, 8 << 30), "larger than a bundle's are"),
        (header(tarfile.GNUTYPE_LONGNAME, 8 << 30), "larger than a bundle's are"),
        (header(tarfile.XHDTYPE, 13, b"13 path=r/xy\n") * 3000, "can be read: maximum recursion"),
        (header(tarfile.XHDTYPE, 26, b"26 GNU.sparse.map=1,x,3,4\n"), "can be read"),
        (header(tarfile.REGTYPE, 4 << 30), "more than a bundle may"),
        (header(tarfile.REGTYPE, 1 << 20, b"short"), "not an archive that can be read"),
    ],
)
def test_headers_that_would_fill_memory_or_break_the_reader_are_refused(
    tmp_path: Path, members: bytes, says: str
) -> None:
    path = tmp_path / "a.tar.xz"
    path.write_bytes(lzma.compress(members + header(tarfile.REGTYPE, 1, b"x") + bytes(1024)))
    refused(path, says)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    pack(sealed(tmp_path), tmp_path / "a.tar.xz")
    whole = (tmp_path / "a.tar.xz").read_bytes()
    for length in (10, len(whole) // 2):
        (tmp_path / "a.tar.xz").write_bytes(whole[:length])
        refused(tmp_path / "a.tar.xz", "not an archive that can be read")


def test_an_archive_that_wants_too_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(sealed(tmp_path), tmp_path / "a.tar.xz")
    monkeypatch.setattr(archive, "MEMORY_BYTES", 1 << 20)
    refused(tmp_path / "a.tar.xz", "not an archive that can be read")


def by_number(verification: Verification) -> dict[int, Status]:
    return {step.number: step.status for step in verification.steps}


def test_other_files_of_this_version_are_accepted_only_if_asked_for(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    strict, lenient = (
        verify_bundle(bundle, options(bundle, other_harness=accepted)) for accepted in (False, True)
    )
    assert by_number(strict)[10] == Status.FAILS
    assert by_number(strict)[5] == Status.FAILS
    assert by_number(lenient)[5] == Status.NOT_CHECKED
    assert not lenient.holds
    assert by_number(lenient)[7] == by_number(lenient)[10] == Status.NOT_CHECKED
    assert "made by other files of haikugate" in lenient.steps[9].message


def options(bundle: Path, *, other_harness: bool) -> VerifyOptions:
    """A reviewer whose installation has the bundle's version, and one file more."""
    made_by = BundleReader(bundle).metadata["harness"]
    files = {**made_by["files"], "harness/later.py": "00" * 32}
    here = {"version": made_by["version"], "digest": "", "files": files}
    return VerifyOptions(other_harness=other_harness, installed=here, checklists=CHECKLISTS)


def test_there_is_an_example() -> None:
    assert [path.parent.name for path in EXAMPLES] == ["h200"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_examples_are_small_whole_and_name_nobody(path: Path) -> None:
    assert path.stat().st_size <= EXAMPLE_BYTES
    with unpacked(path) as folder:
        verification = verify_bundle(folder, VerifyOptions(other_harness=True, allow_expired=True))
        reader = BundleReader(folder)
        report = (path.parent / "report.md").read_bytes()
        assert reader.read("report.md") == report
        told = reader.read("environment.json") + reader.read("metadata.json") + report
        assert reader.environment["os"].replace(".", "").split(" ")[1].isdigit()
    assert verification.whole, verification.steps
    held = {number for number, status in by_number(verification).items() if status == Status.HOLDS}
    assert held >= {1, 2, 3, 6, 8}
    for gpu in reader.environment["gpus"]:
        assert gpu["uuid"].startswith("anonymous-")
    assert not re.search(rb"/(root|home|Users)/", told)
