"""Every command that README and docs show is run here, or is a target that CI runs."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import models

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {
    "haikugate": ["-m", "harness.cli"],
    "haikugate-engine": ["-m", "engine.cli"],
    "pytest": ["-m", "pytest"],
}
# Long or needing another machine: run elsewhere, by the file that is named.
ELSEWHERE = {
    r"\.venv/bin/pytest -m gate\d": ".ci/run",
    r"\.venv/bin/pytest -m utf8": ".ci/run",
    r"\.venv/bin/haikugate certify .*--engine-url": "tests/integration/test_certify_canned.py",
    r"\.venv/bin/haikugate certify .*--engine-command": "tests/integration/test_certify_canned.py",
    r"\.venv/bin/haikugate certify --gate 4": ".ci/run",
    r"\.venv/bin/haikugate-engine serve": "tests/integration/test_engine_process.py",
    r"\.venv/bin/haikugate verify proofs/RUN": "tests/unit/test_bundle_commands.py",
    r"\.venv/bin/haikugate report proofs/RUN": "tests/unit/test_bundle_commands.py",
    r"(\S+ )*docker ": "tests/integration/test_docker.py",
    r"pytest -m gate4 --launcher docker": ".ci/run",
    r"\.ci/docker": ".ci/run",
}


def _commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            joined = block.replace("\\\n", " ")
            for line in joined.splitlines():
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command and not command.startswith("#"):
                    yield page.name, command


COMMANDS = sorted(set(_commands()))


def _elsewhere(command: str) -> str | None:
    return next((f for pattern, f in ELSEWHERE.items() if re.match(pattern, command)), None)


def test_the_read_me_shows_its_first_command_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert next(n for n, line in enumerate(lines, 1) if line.startswith("make gate4")) <= 15


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p}: {c}" for p, c in COMMANDS])
def test_a_shown_command_works(page: str, command: str, tmp_path: Path) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    elsewhere = _elsewhere(command)
    if elsewhere is not None:
        assert (ROOT / elsewhere).is_file()
        return
    name = Path(words[0]).name
    assert name in SCRIPTS, f"{page} shows {command!r}: nobody runs it"
    model = str(models.resolve("smollm2-135m-instruct"))
    arguments = [model if word == "MODEL" else word for word in words[1:]]
    arguments = [str(tmp_path / "my-key.pem") if a == "my-key.pem" else a for a in arguments]
    if arguments[:2] == ["keys", "show"]:
        _run("haikugate", ["keys", "generate", arguments[2], "--no-passphrase"], tmp_path)
    _run(name, arguments, ROOT if name == "pytest" else tmp_path)


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
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target} is not there"
