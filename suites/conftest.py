"""Models that the suites generate: small files of every architecture, the same everywhere."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

GENERATE_S = 60.0


@pytest.fixture(scope="session")
def generated_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`generated_model(name)`: the file of that name and seed 0; its own name tells nothing."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def generate(name: str) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.gguf"
        command = [sys.executable, "-m", "engine.synthetic", name, str(path), "--seed", "0"]
        subprocess.run(command, check=True, capture_output=True, timeout=GENERATE_S)
        return path

    return generate
