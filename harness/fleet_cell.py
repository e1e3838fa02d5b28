"""One cell of a campaign, run where this is called: a gate run of its own, its bundle packed."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from harness.archive import SUFFIX, pack
from harness.errors import ModelFileError
from harness.launch.guardian import Guardian
from harness.manifest import MANIFEST
from harness.models import registered

POLL_S: Final = 0.5
ORDERLY_S: Final = 30.0
"""What a gate run that is told to end may take to stop its engines."""
CLUSTER_VARIABLES: Final = "RAY_"


@dataclass(frozen=True)
class CellRun:
    """What a gate run left: its exit code, its last line, its bundle if it sealed one."""

    exit_code: int
    said: str
    seconds: float
    archive: bytes | None


def run_cell(options: Sequence[str], model: str | None, nonce: str) -> CellRun:
    """Certify with these options of `haikugate certify` and this nonce.

    A registered model that is not here is fetched first; raises ModelFileError.
    """
    started = time.monotonic()
    with TemporaryDirectory(prefix="haikugate-cell-") as name:
        folder = Path(name)
        if model is not None:
            _fetch(model, folder)
        proofs = folder / "proofs"
        code, said = _haikugate(
            ("certify", *options, f"--nonce={nonce}", f"--proof-dir={proofs}"), folder
        )
        sealed = sorted(path.parent for path in proofs.glob(f"*/{MANIFEST}"))
        archive = _packed(sealed[0], folder) if sealed else None
    return CellRun(code, said, time.monotonic() - started, archive)


def _fetch(model: str, folder: Path) -> None:
    known = registered(model)
    if known is None or known.path.is_file():
        return
    code, said = _haikugate(("models", "fetch", known.name), folder)
    if code:
        raise ModelFileError(said)


def _packed(bundle: Path, folder: Path) -> bytes:
    archive = folder / f"bundle{SUFFIX}"
    pack(bundle, archive)
    return archive.read_bytes()


def _haikugate(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run a command of ours in this empty folder; its exit code and the last line it printed.

    Whatever interrupts this ends the command and its engines too.
    """
    printed = folder / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            (sys.executable, "-m", "harness.cli", *words),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        guardian = Guardian(process.pid)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)  # in pieces: a cancelled task is told between them
        finally:
            _end(process)
            guardian.release()
    lines = printed.read_text(encoding="utf-8", errors="replace").split("\n")
    return process.returncode, next((line.strip() for line in reversed(lines) if line.strip()), "")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(ORDERLY_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> Mapping[str, str]:
    """The node's own, without Ray's own variables and another run's name."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(CLUSTER_VARIABLES) and name != "HAIKUGATE_RUN_ID"
    }
