"""Whose code ran in the harness's process besides its own: pytest's plug-ins and conftest files."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Final

SUITES: Final = Path(__file__).resolve().parent.parent / "suites"
OWN: Final = ("_pytest", "pluggy", "pytest", "harness", "suites")
"""Packages whose plug-ins belong to every run."""


def companions(plugins: Iterable[object]) -> tuple[str, ...]:
    """The names of plug-in modules that are neither pytest's nor ours; a conftest by its folder."""
    modules = {_module_of(plugin) for plugin in plugins}
    named = {_name(module) for module in modules if module is not None and not _own(module)}
    return tuple(sorted(named))


def _module_of(plugin: object) -> ModuleType | None:
    if isinstance(plugin, ModuleType):
        return plugin
    return sys.modules.get(type(plugin).__module__)


def _own(module: ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    if path and Path(path).name == "conftest.py":
        return Path(path).resolve().is_relative_to(SUITES)
    return module.__name__.partition(".")[0] in OWN


def _name(module: ModuleType) -> str:
    path = Path(getattr(module, "__file__", None) or module.__name__)
    return f"{path.parent.name}/conftest.py" if path.name == "conftest.py" else module.__name__
