"""Certificates made from outside: each attack is performed, and no clean verifier accepts it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("harness", "suites", "engine", "kernels")
NOTHING = ("-k", "no_such_test", "--profile", "cpu")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "HAIKUGATE_"))}

ALL_PASS = """
import harness.finish, harness.gates
from dataclasses import replace
from harness.observation import Verdict

judge_run = harness.gates.judge_run

def forged(checklists, run, context):
    _, checks = judge_run(checklists, run, context)
    passed = tuple(
        c if c.verdict == Verdict.NOT_APPLICABLE else replace(c, verdict=Verdict.PASS, message="ok")
        for c in checks
    )
    return harness.gates.judge_gate(replace(context, blockers=()), passed), passed

harness.finish.judge_run = forged
"""

TRUE_DIGESTS = """
import pathlib, harness.installation as installed
installed._ROOT = pathlib.Path({root!r})
installed.installation.cache_clear()
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The verifier's installation, which no attacker reaches."""
    return copied(ROOT, tmp_path_factory.mktemp("clean"))


def copied(source: Path, into: Path) -> Path:
    """A whole installation in another place."""
    for package in PACKAGES:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source / package, into / package, ignore=skipped)
    return into


@pytest.fixture
def tree(clean: Path, tmp_path: Path) -> Path:
    """The attacker's installation, to be edited."""
    return copied(clean, tmp_path / "tree")


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a clean environment plus these variables."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**CLEAN, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def gate(tree: Path, *arguments: str, **variables: str) -> Path:
    """A gate run by hand, as an attacker would start it; returns its bundle."""
    folder = tree.parent
    plain = ("pytest", str(tree / "suites"), "-c", os.devnull, "-p", "no:cacheprovider")
    options = ("-m", "gate1", *NOTHING, *arguments, "--proof-dir", "proofs")
    path = os.pathsep.join((str(tree), str(folder)))
    ended = run(folder, *plain, *options, PYTHONPATH=path, **variables)
    found = list((folder / "proofs").glob("*"))
    assert len(found) == 1, ended.stdout[-2000:] + ended.stderr[-2000:]
    return found[0]


def certified(bundle: Path) -> bool:
    return bool(json.loads((bundle / "checks.json").read_text())["certified"])


def refusals(clean: Path, bundle: Path) -> str:
    """The failing steps of `haikugate verify`, run from the clean installation."""
    ended = run(clean, "harness.cli", "verify", str(bundle))
    assert ended.returncode == 1, ended.stdout
    assert "DOES NOT HOLD" in ended.stdout
    return "\n".join(line for line in ended.stdout.splitlines() if "FAILS" in line)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_verdicts_patched_in_memory_are_recomputed(clean: Path, tree: Path) -> None:
    (tree.parent / "attack.py").write_text(ALL_PASS)
    bundle = gate(tree, "-p", "attack")
    assert certified(bundle)
    assert "G1-HTTP-HEALTH: wanted not_run, got pass" in refusals(clean, bundle)


@pytest.mark.parametrize("lies", [False, True], ids=["naive", "with the true digests"])
def test_a_shadowing_harness_is_refused(clean: Path, tree: Path, lies: bool) -> None:
    append(tree / "harness" / "plugin.py", ALL_PASS)
    if lies:
        append(tree / "harness" / "plugin.py", TRUE_DIGESTS.format(root=str(clean)))
    bundle = gate(tree)
    assert certified(bundle)
    said = refusals(clean, bundle)
    assert "wanted not_run, got pass" in said
    assert ("harness/plugin.py: not the file installed here" in said) is not lies


@pytest.mark.parametrize("file", ["suites/test_http.py", "engine/sampler.py"])
def test_an_edited_file_is_named(clean: Path, tree: Path, file: str) -> None:
    append(tree / file, "\n")
    script = Path(sys.executable).with_name("haikugate-engine")
    bundle = gate(tree, "--engine-command", f"{script} serve --model {{model}}")
    assert f"{file}: not the file installed here" in refusals(clean, bundle)


def test_an_added_judge_is_named(clean: Path, tree: Path) -> None:
    judges = (
        "from harness.judges import http\n"
        "http.JUDGES = dict.fromkeys(http.JUDGES, lambda seen, limits: None)\n"
        "JUDGES = {}\n"
    )
    (tree / "harness" / "judges" / "zeal.py").write_text(judges)
    assert "harness/judges/zeal.py: not the file installed" in refusals(clean, gate(tree))


def test_another_version_is_not_believed(clean: Path, tree: Path) -> None:
    """A bundle that claims another version and other checklists has nothing recomputed."""
    append(tree / "harness" / "plugin.py", ALL_PASS)
    append(tree / "harness" / "checklists" / "gate1.toml", "# other\n")
    append(tree / "harness" / "installation.py", '\nharness_version = lambda: "0.0.9"\n')
    bundle = gate(tree)
    assert certified(bundle)
    ended = run(clean, "harness.cli", "verify", str(bundle))
    assert ended.returncode == 1
    assert "NOT RECOMPUTED" in ended.stdout


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"PYTEST_PLUGINS": "attack"}, id="plug-in"),
        pytest.param({"PYTEST_ADDOPTS": "-p attack --assert=plain"}, id="options"),
    ],
)
def test_certify_loads_nothing_from_around_it(tree: Path, variables: dict[str, str]) -> None:
    """Neither variables nor any conftest.py or pytest.ini above the suites or in the folder."""
    folder = tree.parent
    for path in (tree / "conftest.py", folder / "conftest.py", folder / "attack.py"):
        path.write_text(ALL_PASS)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p attack\n")
    python_path = os.pathsep.join((str(tree), str(folder)))
    certify = ("harness.cli", "certify", "--gate", "1", *NOTHING, "--proof-dir", "proofs")
    ended = run(folder, *certify, PYTHONPATH=python_path, **variables)
    assert ended.returncode == 1, ended.stdout[-2000:] + ended.stderr[-2000:]
    (bundle,) = (folder / "proofs").iterdir()
    assert not certified(bundle)


COLLUDING = """
import pathlib
(pathlib.Path({folder!r}) / "ran").touch()
raise SystemExit(3)
"""

REFERENCE = """
from harness.models import resolve
from harness.reference import reference_engine
with reference_engine(resolve("smollm2-135m-instruct")) as engine:
    print(engine.client.health().status)
"""

DEFAULT_ENGINE = """
from harness.models import resolve
from harness.under_test import EngineOptions, EngineUnderTest
engine = EngineUnderTest(EngineOptions("cpu")).launch()
print(engine.client.health().status)
engine.stop()
"""


@pytest.mark.parametrize("code", [REFERENCE, DEFAULT_ENGINE], ids=["reference", "default engine"])
@pytest.mark.parametrize("way", ["folder", "PYTHONPATH"])
def test_a_shadowing_engine_is_not_ours(tmp_path: Path, way: str, code: str) -> None:
    """Our engine is this installation's, whatever `engine` lies where the run was started."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").touch()
    (tmp_path / "engine" / "cli.py").write_text(COLLUDING.format(folder=str(tmp_path)))
    (tmp_path / "attack.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}")
    variables = {"PYTHONPATH": str(tmp_path)} if way == "PYTHONPATH" else {}
    ended = run(tmp_path if way == "folder" else ROOT, "attack", **variables)
    assert ended.stdout.strip() == "200", ended.stderr[-2000:]
    assert not (tmp_path / "ran").exists()
