"""Models that the suites generate, and whose turn it is on a GPU that workers share."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.installation import own_modules
from harness.stash import SESSION

GENERATE_S = 180.0
ALONE = "alone_on_gpu"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Tests run beside those of other workers, but for one that needs the GPU for itself.

    Whoever waits for the lock holds the queue, so that others cannot keep passing it.
    """
    stem = f"{tempfile.gettempdir()}/haikugate-turn-{os.getuid()}"
    session = item.config.stash.get(SESSION, None)
    has_gpu = session is not None and session.context.profile != "cpu"
    alone = has_gpu and ALONE in getattr(item, "fixturenames", ())
    with Path(f"{stem}.queue").open("ab") as queue, Path(f"{stem}.lock").open("ab") as lock:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture
def alone_on_gpu() -> None:
    """Where there is a GPU, no other test of this host runs beside one that uses this fixture."""


@pytest.fixture(scope="session")
def generated_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`generated_model(name)`: the file of that name and seed 0; its own name tells nothing."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def generate(name: str) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.gguf"
        command = [sys.executable, "-m", "engine.synthetic", name, str(path), "--seed", "0"]
        ours = {**os.environ, **own_modules()}
        subprocess.run(command, check=True, capture_output=True, timeout=GENERATE_S, env=ours)
        return path

    return generate
