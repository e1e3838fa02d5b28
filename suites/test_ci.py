"""Gate 4: continuous integration: the project's workflows, and that wheel and image can be built.

The subject is the project's own checkout; what is recorded are files and the output of tools.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from harness.observation import Observe

WORKFLOWS = ("ci.yml", "gpu-ci.yml", "release.yml")
BUILD_FILES = ("Dockerfile.gpu", ".dockerignore", "pyproject.toml", "Makefile", "README.md")
TIMEOUT_S = 300.0


@pytest.fixture
def checkout() -> Path:
    """The project's checkout: where these suites live, unless they were installed as a wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".github" / "workflows").is_dir():
        pytest.skip(f"{root} is no checkout of the project: it has no .github/workflows")
    return root


def texts(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The text of each of these files that is there."""
    found = {name: root / name for name in names}
    return {name: path.read_text("utf-8") for name, path in found.items() if path.is_file()}


def outcome(*command: str, cwd: Path) -> dict[str, Any]:
    """A command's exit code and the end of what it printed; code None if it cannot be run."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"command": list(command), "code": None, "output": str(error)}
    printed = (done.stdout + done.stderr)[-4000:]
    return {"command": [Path(command[0]).name, *command[1:]], "code": done.returncode,
            "output": printed}  # fmt: skip


def tool(name: str) -> str:
    """A tool of this installation: beside its Python, else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name) or name


def workflows(root: Path) -> dict[str, str]:
    """The text of each workflow."""
    return texts(root / ".github" / "workflows", WORKFLOWS)


def present(root: Path, contents: Mapping[str, str]) -> list[str]:
    """The scripts and test paths that the texts name and that exist in the checkout."""
    words = set(re.findall(r"[\w./-]+", " ".join(contents.values())))
    safe = (word for word in words if not word.startswith("/") and ".." not in word)
    return sorted(word for word in safe if "/" in word and (root / word).exists())


@pytest.mark.check("G4-CI-WORKFLOW")
def test_workflows_are_valid(checkout: Path, observe: Observe) -> None:
    folder = str(Path(".github") / "workflows")
    files = [f"{folder}/{name}" for name in WORKFLOWS]
    schema = "vendor.github-workflows"
    observe(
        workflows=workflows(checkout),
        schema=outcome(tool("check-jsonschema"), "--builtin-schema", schema, *files, cwd=checkout),
        audit=outcome(tool("zizmor"), "--offline", folder, cwd=checkout),
        build_files=texts(checkout, BUILD_FILES),
        paths=present(checkout, workflows(checkout)),
    )


@pytest.mark.check("G4-CI-TESTS")
def test_workflows_run_the_tests(checkout: Path, observe: Observe) -> None:
    tests = sorted(path.relative_to(checkout).as_posix() for path in checkout.glob("tests/**/*.py"))
    observe(
        workflows=workflows(checkout),
        host_tests=[name for name in tests if name.startswith("tests/unit/test_")],
        device_tests=[name for name in tests if name.startswith("tests/integration/gpu/test_")],
        makefile=texts(checkout, ("Makefile",)),
    )


@pytest.mark.check("G4-CI-ARTIFACTS")
def test_workflows_keep_the_evidence(checkout: Path, observe: Observe) -> None:
    observe(workflows=workflows(checkout))


@pytest.mark.check("G4-CI-DEPLOY")
def test_the_wheel_builds_and_installs(checkout: Path, tmp_path: Path, observe: Observe) -> None:
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    copy_source(checkout, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = outcome(
        *pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(source), cwd=tmp_path
    )
    built = sorted(wheels.glob("haikugate-*.whl"))
    install = outcome(
        *pip, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
        *map(str, built), cwd=tmp_path,
    )  # fmt: skip
    imported = outcome(sys.executable, "-c", IMPORT, str(target), cwd=tmp_path)
    observe(
        build=build,
        install=install,
        imported=imported,
        wheels={path.name: sha256(path.read_bytes()).hexdigest() for path in built},
        installed=sorted(path.relative_to(target).as_posix() for path in target.rglob("*.toml")),
        dockerfile=texts(checkout, ("Dockerfile.gpu", ".dockerignore")),
        workflows=workflows(checkout),
    )


IMPORT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import harness, engine, kernels, suites;"
    "print(*(p.__file__.startswith(sys.argv[1]) for p in (harness, engine, kernels, suites)))"
)


def copy_source(root: Path, target: Path) -> None:
    """Copy what the wheel is built from, so that the build leaves nothing in the checkout."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, target / name)
    for name in ("harness", "engine", "kernels", "suites"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, target / name, ignore=ignored)
