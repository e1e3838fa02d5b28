"""The model registry: names pinned to files by size and SHA-256, and where the files lie."""

import hashlib
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from harness.errors import ModelFileError, UsageError
from harness.observation import Json

REGISTRY = Path(__file__).with_name("models.toml")
DEFAULT_MODEL = "smollm2-135m-instruct"
COPY_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
_GENERATED = b"haikugate.generated" + bytes([7, 0, 0, 0, 1])
"""A key of GGUF metadata, its type (boolean) and its value (true)."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done, and the bytes in all."""


def silent(_what: str, _done_bytes: int, _total_bytes: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Model:
    """A registered model; `profiles` are those whose certificates are about it.

    From PyPI it is `member` of the wheel of `package` at `version`, from the hub `file` of
    `repository` at `revision`.
    """

    name: str
    file: str
    bytes: int
    sha256: str
    quant: str
    architecture: str
    licence: str
    source: str
    profiles: tuple[str, ...] = ()
    package: str = ""
    version: str = ""
    member: str = ""
    repository: str = ""
    revision: str = ""

    @property
    def origin(self) -> str:
        """Where the file comes from, in one phrase."""
        if self.source == "pypi":
            return f"PyPI {self.package} {self.version}"
        return f"{self.repository} @ {self.revision[:12]}"

    @property
    def path(self) -> Path:
        """Where the file lies in the user's cache once it is fetched."""
        return models_folder() / self.file


def cache_folder() -> Path:
    """HAIKUGATE_CACHE_DIR, or haikugate's folder in the user's cache."""
    if explicit := os.environ.get("HAIKUGATE_CACHE_DIR"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haikugate"


def models_folder() -> Path:
    """Where fetched models lie."""
    return cache_folder() / "models"


@cache
def registry() -> Mapping[str, Model]:
    """Every registered model by name, the default first."""
    rows = tomllib.loads(REGISTRY.read_text(encoding="utf-8"))["model"]
    models = (Model(**{**row, "profiles": tuple(row["profiles"])}) for row in rows)
    return {model.name: model for model in models}


def registered(name: str) -> Model | None:
    """The registered model of this name, whatever its case."""
    return registry().get(name.lower())


def names_a_file(name: str) -> bool:
    """Whether this can only be a path, not a registered model's name."""
    path = Path(name)
    return path.suffix == ".gguf" or len(path.parts) > 1


def find(name: str) -> Model:
    """The registered model of this name; raises UsageError listing the known."""
    model = registered(name)
    if model is None:
        known = ", ".join(registry())
        raise UsageError(f"model {name!r}: wanted a path that exists or one of {known}")
    return model


def known_by_digest(sha256: str) -> Model | None:
    """The registered model whose file has this digest."""
    return next((model for model in registry().values() if model.sha256 == sha256), None)


def unpublished(profile: str, models: Sequence[Mapping[str, Json]]) -> list[str]:
    """Which files a certificate of this profile is about and a run did not have, each a sentence.

    `models` are `metadata.json`'s; only m0 names its files.
    """
    if profile != "m0":
        return []
    found = {model.get("sha256") for model in models}
    wanted = [model for model in registry().values() if "m0" in model.profiles]
    strange = [str(row.get("name")) for row in models if not _known(row)]
    return [
        *(f"profile m0: not the published {m.name}" for m in wanted if m.sha256 not in found),
        *(f"profile m0: {name}: no model of it" for name in strange),
    ]


def _known(row: Mapping[str, Json]) -> bool:
    return row.get("sha256") is None or known_by_digest(str(row["sha256"])) is not None


def is_generated(path: Path) -> bool:
    """Whether the file says that its weights are random numbers, in its first HEAD_BYTES."""
    with path.open("rb") as stream:
        return _GENERATED in stream.read(HEAD_BYTES)


def digest(stream: BinaryIO, sink: BinaryIO | None, total_bytes: int, progress: Progress) -> str:
    """SHA-256 of at most `total_bytes` + 1 bytes of the stream, copied to the sink if there is one.

    Raises ModelFileError if the stream is shorter or longer.
    """
    sha256, done_bytes = hashlib.sha256(), 0
    while piece := stream.read(min(COPY_BYTES, total_bytes + 1 - done_bytes)):
        sha256.update(piece)
        if sink is not None:
            sink.write(piece)
        done_bytes += len(piece)
        progress("verify", done_bytes, total_bytes)
    if done_bytes != total_bytes:
        more = " and more" if done_bytes > total_bytes else ""
        raise ModelFileError(f"wanted {total_bytes} bytes, got {done_bytes}{more}")
    return sha256.hexdigest()


def verify_file(path: Path, model: Model, progress: Progress = silent) -> None:
    """Return if the file is the model's, bit for bit; raises ModelFileError."""
    try:
        with path.open("rb") as stream:
            got = digest(stream, None, model.bytes, progress)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except ModelFileError as error:
        raise ModelFileError(f"{path}: not {model.name}: {error}") from None
    if got != model.sha256:
        raise ModelFileError(f"{path}: not {model.name}: wanted SHA-256 {model.sha256}, got {got}")


def resolve(name_or_path: str) -> Path:
    """A model file on this machine: an existing path, or a registered model that was fetched.

    Raises UsageError for an unknown name, ModelFileError with the command that gets the file.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if names_a_file(name_or_path):
        raise ModelFileError(f"{path}: no such file")
    model = find(name_or_path)
    if not model.path.is_file():
        raise ModelFileError(
            f"{model.name} is not on this machine (wanted {model.path});"
            f" run: haikugate models fetch {model.name}"
        )
    return model.path


def adopt(model: Model, stream: BinaryIO, progress: Progress = silent) -> Path:
    """Copy a stream to the model's place, if it is the model; raises ModelFileError.

    The file appears there whole and verified, or not at all, however many do this at once.
    """
    folder = models_folder()
    temporary = folder / f".{model.file}.{os.getpid()}.{os.urandom(4).hex()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_space(folder, model.bytes)
        with temporary.open("xb") as sink:
            got = digest(stream, sink, model.bytes, progress)
            os.fsync(sink.fileno())
        if got != model.sha256:
            raise ModelFileError(f"wanted SHA-256 {model.sha256}, got {got}")
        temporary.replace(model.path)
    except OSError as error:
        raise ModelFileError(f"cannot write {model.path}: {error.strerror}") from error
    except ModelFileError as error:
        raise ModelFileError(f"not {model.name}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return model.path


def require_space(folder: Path, wanted_bytes: int) -> None:
    """Return if the disk has room; raises ModelFileError naming both numbers."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < wanted_bytes:
        raise ModelFileError(
            f"{folder}: wanted {wanted_bytes} bytes of disk, {free_bytes} are free;"
            " set HAIKUGATE_CACHE_DIR to a larger disk"
        )


def inspect_command(path: Path) -> list[str]:
    """The reference engine's own command that shows what a model file holds."""
    return [sys.executable, "-m", "engine.cli", "inspect", "--model", str(path)]
