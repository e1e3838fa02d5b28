"""Whose code runs beside the harness's is named in the bundle and in the report."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.bundle_reader import BundleReader
from harness.companions import SUITES, companions
from harness.report_view import caveats
from tests.unit.bundles import sealed
from tests.unit.gate_project import GateProject


def module(name: str, path: str | None = None) -> ModuleType:
    made = ModuleType(name)
    made.__file__ = path
    return made


def test_only_strangers_are_named() -> None:
    plugins = [
        module("_pytest.runner"),
        module("harness.plugin"),
        module("attack"),
        module("conftest", str(SUITES / "conftest.py")),
        module("conftest", "/home/someone/repository/conftest.py"),
    ]
    assert companions(plugins) == ("attack", "repository/conftest.py")


def test_a_plugin_object_is_named_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = module("stranger")
    monkeypatch.setitem(sys.modules, "stranger", stranger)
    plugin = type("Plugin", (), {"__module__": "stranger"})()
    assert companions([plugin]) == ("stranger",)


def test_a_run_says_whose_code_ran_beside_it(pytester: pytest.Pytester) -> None:
    project = GateProject(pytester)
    (project.folder / "beside.py").write_text("")
    project.run("-p", "beside")
    named = project.bundle.metadata["companions"]
    assert "beside" in named
    assert any(name.endswith("/conftest.py") for name in named)
    assert any("beside" in sentence for sentence in caveats(project.bundle, ()))


def test_a_run_alone_names_nobody(tmp_path: Path) -> None:
    bundle = BundleReader(sealed(tmp_path))
    assert not any("Code of others" in sentence for sentence in caveats(bundle, ()))
