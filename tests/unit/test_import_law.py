import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("harness", "engine", "kernels", "suites", "tests")
ALLOWED = {
    "harness": {"harness"},
    "kernels": {"kernels"},
    "engine": {"engine"},
    "suites": {"suites", "harness"},
}
HEAVY = {"cupy", "cupyx", "ray", "docker", "torch", "matplotlib", "pyarrow", "transformers"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", getattr(function, "id", ""))


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_the_law_allows(package: str) -> None:
    for path in sources(package):
        relative = path.relative_to(ROOT).as_posix()
        allowed = set(ALLOWED[package])
        if relative.startswith("engine/backends/cuda"):
            allowed.add("kernels")
        used = {top(name) for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
        assert not used & (set(OURS) - allowed), relative


@pytest.mark.parametrize("package", ALLOWED)
def test_heavy_packages_are_imported_lazily(package: str) -> None:
    for path in sources(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        eager = {top(name) for node in tree.body if not lazy(node) for name in imports(node)}
        assert not eager & HEAVY, path.relative_to(ROOT)


def lazy(node: ast.stmt) -> bool:
    """Inside a function or class, or only for type checkers."""
    late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return late or only_for_types(node)


def only_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", ALLOWED)
def test_no_import_cycle_even_of_late_imports(package: str) -> None:
    names = {module_name(path): path for path in sources(package)}
    graph = {
        name: {
            found
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if not only_for_types(node)
            for found in imports(node)
            if found in names and found != name
        }
        for name, path in names.items()
    }
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph, f"cycle among {sorted(graph)}"


def test_forbidden_libraries_are_never_imported() -> None:
    for package in ALLOWED:
        for path in sources(package):
            used = {top(name) for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
            assert not {name for name in used if "llama_cpp" in name or name == "ggml"}, path


def test_importing_the_harness_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); import harness;"
        "print(' '.join(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = {top(name) for name in run.stdout.decode().split()}
    assert loaded - sys.stdlib_module_names == {"harness"}


def test_the_plugin_loads_nothing_heavy() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import harness.plugin;"
        "print(' '.join(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(run.stdout.decode().split())
    assert loaded == {"harness", "harness.plugin", "harness.stash"}
