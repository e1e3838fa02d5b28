"""An engine's digest covers what its command runs, not only the command."""

import sys
from pathlib import Path

import pytest

from harness.engine_files import command_files
from harness.installation import tree_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "someone"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "cli.py").write_text("def main(): pass\n")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


@pytest.fixture
def script(tmp_path: Path, package: Path) -> Path:
    path = tmp_path / "someone-engine"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom someone.cli import main\nsys.exit(main())\n"
    )
    return path


def test_an_edited_package_behind_an_unchanged_script_shows(package: Path, script: Path) -> None:
    command = (str(script), "serve", "--port", "{port}")
    before = command_files(command)
    assert set(before) == {"someone-engine", "someone/__init__.py", "someone/cli.py"}
    (package / "cli.py").write_text("def main(): print('canned')\n")
    after = command_files(command)
    assert after["someone-engine"] == before["someone-engine"]
    assert tree_digest(after) != tree_digest(before)


def test_an_edited_module_behind_python_m_shows(package: Path) -> None:
    command = (sys.executable, "-m", "someone.cli", "--model", "{model}")
    before = command_files(command)
    assert "someone/cli.py" in before
    (package / "new.py").write_text("")
    assert tree_digest(command_files(command)) != tree_digest(before)


def test_bytecode_is_no_part_of_it(package: Path) -> None:
    command = (sys.executable, "-m", "someone.cli")
    before = command_files(command)
    (package / "cli.pyc").write_bytes(b"\0")
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "cli.cpython-311.pyc.4711").write_bytes(b"\0")
    assert command_files(command) == before


def test_a_program_that_is_not_python_is_its_file() -> None:
    assert set(command_files(("sh", "-c", "exit"))) == {"sh"}


def test_nothing_is_found_behind_nothing(tmp_path: Path) -> None:
    assert command_files(()) == {}
    assert command_files((str(tmp_path / "gone"),)) == {}


def test_a_module_that_is_not_there_adds_nothing() -> None:
    assert len(command_files((sys.executable, "-m", "no_such_module_at_all"))) == 1
