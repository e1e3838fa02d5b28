"""What this process holds open, so that a test can name what was opened and never closed."""

import os
from contextlib import suppress


def open_files() -> set[str]:
    """A name of each open file, socket and pipe, as the system tells them apart.

    Compare with `<=`: a thread of an earlier test may close something of its own meanwhile.
    """
    names = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.add(os.readlink(f"/proc/self/fd/{number}"))
    return names
