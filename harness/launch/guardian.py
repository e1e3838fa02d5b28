"""The guardian: a small process that ends an engine whose harness is gone, however it went.

The kernel's own parent-death signal would do so too early: it fires when the thread that started
the engine ends, and it reaches one process, not its group. The guardian waits on a pipe that only
the harness holds; if the pipe closes without a word, the harness is dead.
"""

import subprocess
import sys
from contextlib import suppress
from typing import Final

_PROGRAM: Final = """
import os, signal, sys
group = int(sys.argv[1])
if not sys.stdin.buffer.read(1):
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""
RELEASE_S: Final = 5.0


class Guardian:
    """Watches one engine's process group until it is released."""

    def __init__(self, group: int) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-I", "-S", "-c", _PROGRAM, str(group)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The guardian's own process id."""
        return self._process.pid

    def release(self) -> None:
        """The engine has ended: its group's number may belong to others from now on."""
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        with suppress(OSError):
            self._process.stdin.write(b".")
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(RELEASE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
