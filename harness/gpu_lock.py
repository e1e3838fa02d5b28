"""One run a GPU: two runs on one host must not disturb each other's measurements."""

import fcntl
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from harness.errors import LaunchError

WAIT_S = 1800.0
POLL_S = 1.0


def lock_gpus(gpus: Sequence[str], wait_s: float = WAIT_S, folder: Path | None = None) -> ExitStack:
    """Hold a lock file for each GPU until the stack is closed.

    Always in sorted order, so that two runs cannot wait for each other. Raises LaunchError if
    another run holds one for longer than `wait_s`.
    """
    stack = ExitStack()
    deadline = time.monotonic() + wait_s
    try:
        for gpu in sorted(set(gpus)):
            path = (folder or Path(tempfile.gettempdir())) / f"haikugate-gpu-{_name(gpu)}.lock"
            _take(stack.enter_context(path.open("ab")), gpu, deadline)
    except BaseException:
        stack.close()
        raise
    return stack


def _name(gpu: str) -> str:
    return "".join(character for character in gpu if character.isalnum() or character == "-")


def _take(file: BinaryIO, gpu: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"GPU {gpu}: another run holds it; wait or choose --gpus"
                ) from None
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic()) + 0.01))
        else:
            return
