"""Fetching a model for real: pip, an index on loopback, the bar on a terminal; and no network."""

import hashlib
import io
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from harness import model_commands
from harness.fetch import fetch
from harness.models import Model

ROOT = Path(__file__).parents[2]
NAME = "smollm2-135m-instruct"
CONTENT = os.urandom(3 << 20)
TINY = Model(
    name="tiny",
    file="tiny.gguf",
    bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    quant="F32",
    architecture="llama",
    licence="Apache-2.0",
    source="pypi",
    package="haikugate-tiny-model",
    version="1.0",
    member="tiny/tiny.gguf",
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package index with one wheel, which pip is told to use."""
    folder = tmp_path / "index" / "simple" / TINY.package
    folder.mkdir(parents=True)
    wheel = folder / "haikugate_tiny_model-1.0-py3-none-any.whl"
    about = f"Metadata-Version: 2.1\nName: {TINY.package}\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(TINY.member, CONTENT)
        archive.writestr("haikugate_tiny_model-1.0.dist-info/METADATA", about)
        archive.writestr("haikugate_tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("haikugate_tiny_model-1.0.dist-info/RECORD", "")
    serving = partial(Quiet, directory=str(tmp_path / "index"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), serving)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("HAIKUGATE_CACHE_DIR", str(tmp_path / "cache"))
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("index")
def test_progress_ends_with_every_byte() -> None:
    told: list[tuple[str, int, int]] = []
    fetch(TINY, lambda *progress: told.append(progress))
    download = [(done, total) for what, done, total in told if what == "download"]
    assert len(download) > 1
    assert download[-1][0] == download[-1][1] >= len(CONTENT)
    assert download == sorted(download)


@pytest.mark.usefixtures("index")
def test_the_bar_shows_the_download_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(record=True, force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(model_commands, "Console", lambda **_: terminal)
    path = model_commands.fetch_with_bar(TINY)
    shown = terminal.export_text()
    assert "tiny" in shown
    assert "3.1/3.1 MB" in shown
    assert path.read_bytes() == CONTENT


@pytest.fixture
def no_network(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment without a cached model, whose package index nobody answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        unanswered = {
            "PIP_INDEX_URL": f"http://127.0.0.1:{reserved.getsockname()[1]}/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_RETRIES": "1",
            "HAIKUGATE_CACHE_DIR": str(tmp_path / "cache"),
        }
        yield {**os.environ, **unanswered}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ([sys.executable, "-m", "harness.cli", "models", "fetch", NAME], 3),
        (["make", "--silent", "-o", ".venv/gate.stamp", "gate4"], 2),
    ],
)
def test_without_a_network_one_line_says_what_to_do(
    command: list[str], code: int, no_network: dict[str, str]
) -> None:
    run = subprocess.run(
        command, cwd=ROOT, env=no_network, capture_output=True, text=True, timeout=300, check=False
    )
    ours = [line for line in run.stderr.splitlines() if not line.startswith("make")]
    assert run.returncode == code, run.stdout + run.stderr
    assert len(ours) == 1, run.stderr
    assert "the package index cannot be reached" in ours[0]
    assert f"haikugate models fetch {NAME} --from FILE" in ours[0]
    assert run.stdout == ""
