"""Commands that documents show, tried without their effects."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0
PRINTED = 40_000
PROGRAMS = {"haikugate": "harness.cli", "haikugate-engine": "engine.cli"}
PLAIN = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
"""Variables under which `--help` neither wraps its options nor colours them."""


def try_all(commands: Sequence[str], root: Path) -> list[dict[str, Any]]:
    """Each command as `try_out` tells it; as many at once as there are cores, equal ones once."""
    tried = (tuple(_dry(shlex.split(command, comments=True), root)) for command in commands)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda command: _run(command, root), filter(None, dict.fromkeys(tried))))
    return [try_out(command, root) for command in commands]


def try_out(command: str, root: Path) -> dict[str, Any]:
    """The command as it was tried in the checkout, its exit code (None: not tried), its output.

    Ours and pytest say their `--help`, make says what it would run, scripts are parsed.
    """
    words = shlex.split(command, comments=True)
    tried = _dry(words, root)
    outcome = run(tried, root) if tried else {"code": None, "output": f"{words[0]} is not ours"}
    return {"shown": command, "command": _without_machine(tried), **outcome}


def _dry(words: list[str], root: Path) -> list[str]:
    name, arguments = Path(words[0]).name, words[1:]
    if name in PROGRAMS:
        return [sys.executable, "-m", PROGRAMS[name], *_subcommand(arguments), "--help"]
    if name == "pytest":
        return [sys.executable, "-m", "pytest", "--help"]
    if name == "make":
        return [shutil.which("make") or "make", "--dry-run", *arguments]
    if (root / words[0]).is_file():
        return ["bash", "-n", words[0]]
    return []


def _subcommand(arguments: list[str]) -> list[str]:
    """The words before the first option: with a group two of them, else one."""
    words = [word for word in arguments[:2] if re.fullmatch(r"[a-z]+", word)]
    groups = ("models", "keys", "engines", "gates")
    return words if words and words[0] in groups else words[:1]


def run(command: Sequence[str], root: Path) -> dict[str, Any]:
    """A command's exit code and what it printed; code None if it cannot be run."""
    return dict(_run(tuple(command), root))


@cache
def _run(command: tuple[str, ...], root: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            cwd=root,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, **PLAIN},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"code": None, "output": str(error)}
    return {"code": done.returncode, "output": (done.stdout + done.stderr)[-PRINTED:]}


def _without_machine(command: list[str]) -> list[str]:
    return [Path(word).name if word.startswith("/") else word for word in command]
