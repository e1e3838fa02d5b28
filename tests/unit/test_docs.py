"""Every command that README and docs show is run here, or by a file that is named here."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import models
from harness.documents import commands, links

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {
    "haikugate": ["-m", "harness.cli"],
    "haikugate-engine": ["-m", "engine.cli"],
    "pytest": ["-m", "pytest"],
}
# Long or needing another machine: what the file that is named runs by these words.
ELSEWHERE = {
    r"\.venv/bin/pytest -m (gate\d|docs|utf8)$": (".ci/run", "make gate4"),
    r"\.venv/bin/pytest suites/": (".ci/run", "make gate4"),
    r"\.venv/bin/haikugate certify .*--engine-url": ("tests/unit/test_attached.py", "--engine-url"),
    r"\.venv/bin/haikugate certify .*--engine-command": (
        "tests/integration/test_certify_canned.py",
        "--engine-command",
    ),
    r"\.venv/bin/haikugate certify --gate 4": (
        "tests/integration/test_certify_canned.py",
        "certify",
    ),
    r"\.venv/bin/haikugate-engine serve": ("tests/integration/engine_process.py", '"serve"'),
    r"\.venv/bin/haikugate verify proofs/RUN": ("tests/unit/test_bundle_commands.py", '"verify"'),
    r"\.venv/bin/haikugate report proofs/RUN": ("tests/unit/test_bundle_commands.py", '"report"'),
    r"(\S+ )*docker build ": (".ci/docker", "docker build"),
    r"(\S+ )*docker run ": ("tests/integration/test_docker.py", "ENGINE_COMMAND"),
    r"pytest -m gate4 --launcher docker": (".ci/run", "--launcher docker"),
    r"pytest tests/integration/test_docker.py": (".ci/run", "make test"),
    r"\.ci/docker (up|image|down)": (".ci/run", ".ci/docker"),
}


def _commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for command in commands(page.read_text()):
            yield page.name, command


COMMANDS = sorted(set(_commands()))


def _elsewhere(command: str) -> tuple[str, str] | None:
    return next((run for pattern, run in ELSEWHERE.items() if re.match(pattern, command)), None)


def test_the_read_me_shows_its_first_command_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert next(n for n, line in enumerate(lines, 1) if line.startswith("make gate4")) <= 15


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p}: {c}" for p, c in COMMANDS])
def test_a_shown_command_works(page: str, command: str, tmp_path: Path) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    elsewhere = _elsewhere(command)
    if elsewhere is not None:
        file, words = elsewhere
        assert words in (ROOT / file).read_text(), f"{file} does not run {words!r}"
        return
    name = Path(words[0]).name
    assert name in SCRIPTS, f"{page} shows {command!r}: nobody runs it"
    model = str(models.resolve("smollm2-135m-instruct"))
    arguments = [model if word == "MODEL" else word for word in words[1:]]
    arguments = [str(tmp_path / "my-key.pem") if a == "my-key.pem" else a for a in arguments]
    if arguments[:2] == ["keys", "show"]:
        _run("haikugate", ["keys", "generate", arguments[2], "--no-passphrase"], tmp_path)
    for arg in arguments:
        if arg.endswith(".yaml"):
            (tmp_path / arg).write_text(_yaml_before(page, command))
    _run(name, arguments, ROOT if name == "pytest" else tmp_path)


def _yaml_before(page: str, command: str) -> str:
    """The last YAML that the page shows before the command."""
    text = (ROOT / "docs" / page).read_text().partition(command)[0]
    return re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[-1]


def _run(name: str, arguments: list[str], where: Path) -> None:
    ran = subprocess.run(
        [sys.executable, *SCRIPTS[name], *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page.read_text()):
        path = target.partition("#")[0]
        assert (page.parent / path).exists(), f"{page.name}: {target} is not there"


def test_every_entry_of_elsewhere_is_for_a_shown_command() -> None:
    shown = [command for _, command in COMMANDS]
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, command) for command in shown), pattern


def test_without_a_checkout_the_suite_of_documents_is_skipped(pytester: pytest.Pytester) -> None:
    installed = pytester.mkdir("suites")
    shutil.copy(ROOT / "suites" / "test_docs.py", installed)
    chosen = ("suites/test_docs.py", "-k", "architecture or developer", "-rs")
    result = pytester.runpytest_subprocess(*chosen)
    result.assert_outcomes(skipped=2, deselected=3)
    result.stdout.fnmatch_lines(["*a wheel holds no documents*"])
