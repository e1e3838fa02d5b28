"""An installation is compared with the list that its wheel brought."""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness.installation
from harness.installation import edited_files, installation, wheel_files

RECORD = "haikugate-0.1.0.dist-info/RECORD"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as pip leaves it after installing a wheel of two files."""
    lines = [f"{RECORD},,"]
    for name in ("harness/judges/http.py", "suites/test_http.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"# {name}\n")
        digest = urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{path.stat().st_size}")
    info = tmp_path / RECORD
    info.parent.mkdir()
    info.write_text("\n".join(lines) + "\n")
    (info.parent / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: haikugate\nVersion: 0.1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(harness.installation, "_ROOT", tmp_path.resolve())
    installation.cache_clear()
    yield tmp_path
    installation.cache_clear()


def test_a_wheel_as_it_was_installed_is_not_edited(site: Path) -> None:
    assert set(wheel_files()) == {"harness/judges/http.py", "suites/test_http.py"}
    assert edited_files() == []


def test_edited_added_and_removed_files_are_named(site: Path) -> None:
    (site / "harness" / "judges" / "http.py").write_text("# passes everything\n")
    (site / "suites" / "test_http.py").unlink()
    (site / "harness" / "extra.py").write_text("")
    assert edited_files() == ["harness/extra.py", "harness/judges/http.py", "suites/test_http.py"]


def test_bytecode_is_left_out(site: Path) -> None:
    (site / "harness" / "extra.pyc").write_bytes(b"")
    cache = site / "harness" / "__pycache__"
    cache.mkdir(exist_ok=True)
    for name in (
        "x.cpython-311-pytest-9.2.0.pyo",
        "x.cpython-311-pytest-9.2.0.pyc.4711",
        "x.1.nbc",
    ):
        (cache / name).write_bytes(b"")
    assert edited_files() == []


def test_an_editable_installation_has_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.installation, "_ROOT", Path("/nowhere"))
    assert wheel_files() == {}
    assert edited_files() == []
