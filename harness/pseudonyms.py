"""What evidence may say of the machine it was made on: hardware and versions, not which one it is.

Identifiers of a device become pseudonyms, the same for the same device; the home folder is `~`; a
kernel's release loses what its builder added. Exchanges with an engine are never touched.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from harness.observation import Json

_LENGTH = 16
_SECRET = re.compile(r"(?i)(?:^|[-_])(?:key|token|secret|password|passphrase|auth|credentials)$")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def pseudonym(identifier: str) -> str:
    """Tells two devices apart and names neither: the start of a SHA-256."""
    return "anonymous-" + hashlib.sha256(identifier.encode()).hexdigest()[:_LENGTH]


def bare_release(release: str) -> str:
    """The numbers of a kernel's release, without the suffix that tells who built it where."""
    found = _RELEASE.match(release)
    return found[0] if found else "unknown"


def without_secrets(command: Sequence[str]) -> list[str]:
    """The words of a command in which the values of options and variables for secrets are `***`."""
    shown: list[str] = []
    for word in command:
        name, equals, value = word.partition("=")
        before = shown[-1] if shown else ""
        if equals and value and _SECRET.search(name):
            shown.append(f"{name}=***")
        elif before.startswith("-") and _SECRET.search(before) and not word.startswith("-"):
            shown.append("***")
        else:
            shown.append(word)
    return shown


def without_home(value: Json, home: str = "") -> Json:
    """The same JSON value in which every path below the home folder starts with `~`."""
    home = home or str(Path.home())
    if len(home) < 2:
        return value
    if isinstance(value, str):
        return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
    if isinstance(value, list | tuple):
        return [without_home(member, home) for member in value]
    if isinstance(value, dict):
        return {without_home(k, home): without_home(v, home) for k, v in value.items()}
    return value
