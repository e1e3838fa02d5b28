"""What an installation is made of: its distributions, the modules it imports, its files."""

import ast
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from harness.manifest import source_files

LOADERS: Final = frozenset(
    {"CDLL", "LoadLibrary", "find_library", "dlopen", "import_module", "__import__"}
)


def distributions(root: str) -> list[str]:
    """The installed distributions that `root` needs, by any of its extras, and theirs in turn."""
    found: dict[str, Distribution] = {}
    waiting = [(root, True)]
    while waiting:
        name, all_extras = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            continue
        waiting += [(needed, False) for needed in _needs(found[key], all_extras=all_extras)]
    return sorted(found)


def _needs(dist: Distribution, *, all_extras: bool) -> Iterator[str]:
    extras = (dist.metadata.get_all("Provides-Extra") or []) if all_extras else []
    for line in dist.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        wanted = any(marker.evaluate({"extra": e}) for e in ("", *extras)) if marker else True
        if wanted:
            yield requirement.name


def project_files(root: Path, packages: tuple[str, ...]) -> list[Path]:
    """The files of these packages, without caches."""
    return sorted(path for package in packages for path in source_files(root / package))


def imported_modules(files: list[Path]) -> list[str]:
    """Every module that these Python files import or load by a literal name, wherever it stands."""
    names: set[str] = set()
    for path in files:
        if path.suffix == ".py":
            names |= set(_imports(ast.parse(path.read_bytes(), str(path))))
    return sorted(names)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
        elif isinstance(node, ast.Call) and _called(node.func) in LOADERS:
            literals = (arg.value for arg in node.args if isinstance(arg, ast.Constant))
            yield from (value for value in literals if isinstance(value, str))


def _called(function: ast.expr) -> str:
    return str(getattr(function, "attr", None) or getattr(function, "id", ""))
