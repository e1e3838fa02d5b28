"""The files behind a command: an engine's digest covers its packages, not only its script.

A Python console script is a few lines that import a package, and `python -m` names one: whoever
edits the package leaves the command as it was. So the packages' files are digested with it, found
by the very interpreter that would run them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from harness.manifest import digest_file, source_files

LOCATE_S: Final = 30.0
MAX_SCRIPT_BYTES: Final = 1 << 16
_LOCATE: Final = """
import importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    if spec is not None:
        found[name] = list(spec.submodule_search_locations or [spec.origin])
print(json.dumps(found))
"""
_IMPORT: Final = re.compile(rb"^\s*(?:from|import)\s+([A-Za-z_]\w*)", re.MULTILINE)
_SHEBANG: Final = re.compile(rb"^#!\s*(\S*python[\w.]*)\s")


def command_files(command: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files a command names and of the Python packages it runs, by name."""
    words = [path for part in command if (path := _file_of(part)) is not None]
    files = {path.name: digest_file(path) for path in words}
    for name, location in _packages(command):
        files |= _tree(name, location)
    return files


def _file_of(part: str) -> Path | None:
    """The file a word of the command names: a path, or an executable on PATH."""
    found = Path(part) if os.sep in part else Path(shutil.which(part) or part)
    return found if found.is_file() else None


def _packages(command: Sequence[str]) -> Iterator[tuple[str, Path]]:
    interpreter, modules = _python(command)
    names = sorted({module.partition(".")[0] for module in modules} - sys.stdlib_module_names)
    if not interpreter or not names:
        return
    asked = [interpreter, "-c", _LOCATE, *names]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=LOCATE_S, check=False)
    found = json.loads(told.stdout) if told.returncode == 0 else {}
    for name, locations in found.items():
        yield from ((name, Path(location)) for location in locations if location)


def _python(command: Sequence[str]) -> tuple[str, list[str]]:
    """The interpreter that runs the command and the modules it starts with; empty if none does."""
    script = _file_of(command[0]) if command else None
    if script is None:
        return "", []
    if script.name.startswith("python"):
        at = command.index("-m") + 1 if "-m" in command else 0
        return str(script), list(command[at : at + 1]) if at else []
    with script.open("rb") as file:
        head = file.read(MAX_SCRIPT_BYTES)
    shebang = _SHEBANG.match(head)
    return (
        (shebang[1].decode(), [m.decode() for m in _IMPORT.findall(head)]) if shebang else ("", [])
    )


def _tree(name: str, location: Path) -> dict[str, str]:
    if location.is_file():
        return {f"{name}/{location.name}": digest_file(location)}
    return {
        f"{name}/{path.relative_to(location).as_posix()}": digest_file(path)
        for path in source_files(location)
    }
