"""Loading a model: file → config → adapter → program → runtime, its tokenizer beside that."""

import gc
import hashlib
import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.backends import LoadOptions, Progress, Runtime
from engine.config import ModelConfig
from engine.errors import DeviceError
from engine.gguf import GGUFFile

if TYPE_CHECKING:
    from engine.chat import ChatTemplate
    from engine.tokenizer import Tokenizer

BACKENDS = {"cpu": "engine.backends.cpu", "cuda": "engine.backends.cuda"}
_IMPORTED = ("engine.adapters", "engine.chat", "engine.tokenizer")
_DIGEST_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what it is; `name` is the file's name without its suffix.

    `opened` keeps the file open for as long as the model runs, so that anyone who may look into
    the process can see, and hash, what it was loaded from.
    """

    name: str
    path: Path
    size_bytes: int
    config: ModelConfig
    adapter: str
    backend: str
    quant_kind: str
    bytes_by_type: dict[str, int]
    tokenizer: "Tokenizer"
    chat: "ChatTemplate"
    runtime: Runtime
    opened: BinaryIO

    def close(self) -> None:
        """Free the runtime, let go of the file."""
        self.runtime.close()
        self.opened.close()


def backend_of(device: str) -> str:
    """The backend of a device such as "cpu" or "cuda:0"."""
    return device.partition(":")[0]


def load_model(
    path: Path, options: LoadOptions | None = None, progress: Progress | None = None
) -> LoadedModel:
    """Load a GGUF file; raises ModelLoadError, InsufficientMemory or DeviceError."""
    from engine.adapters import adapter_for

    options = options or LoadOptions()
    backend = import_for(options.device)
    with _no_collections(), GGUFFile.open(path) as file, _Text(file) as text:
        config = ModelConfig.from_file(file)
        adapter = adapter_for(config)

        def load_weights(told: Progress) -> Runtime:
            program = adapter.program(config, file.tensors)
            runtime: Runtime = backend.load(file, program, options, told)
            return runtime

        runtime = _load_beside(text, load_weights, progress or _silent)
        tokenizer, chat = text.result()
        return LoadedModel(
            name=path.stem,
            path=path,
            size_bytes=file.size_bytes,
            config=config,
            adapter=adapter.name,
            backend=backend_of(options.device),
            quant_kind=file.quant_kind,
            bytes_by_type=file.bytes_by_type,
            tokenizer=tokenizer,
            chat=chat,
            runtime=runtime,
            opened=path.open("rb"),
        )


@contextmanager
def _no_collections() -> Iterator[None]:
    """The collector rests: it would go through all that a load leaves, which is there to stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_text(file: GGUFFile) -> "tuple[Tokenizer, ChatTemplate]":
    from engine.chat import ChatTemplate
    from engine.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    return tokenizer, ChatTemplate.from_file(file, tokenizer)


class _Text:
    """The file's text, read in a thread from when it is begun: it keeps the GIL for long."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "tokenizer")
        self._read: Future[tuple[Tokenizer, ChatTemplate]] | None = None

    def begin(self) -> "Future[tuple[Tokenizer, ChatTemplate]]":
        """Read it, if that has not begun."""
        self._read = self._read or self._thread.submit(_read_text, self._file)
        return self._read

    def result(self) -> "tuple[Tokenizer, ChatTemplate]":
        """Tokenizer and template, or the ModelLoadError of their text."""
        return self.begin().result()

    def __enter__(self) -> "_Text":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def _load_beside(
    text: _Text, load_weights: Callable[[Progress], Runtime], progress: Progress
) -> Runtime:
    """Load the weights, and read `text` from when they are told to begin.

    An error of the text ends that, and is told first.
    """

    def tell(loaded: int, total: int) -> None:
        if text.begin().done():
            text.result()
        progress(loaded, total)

    try:
        runtime = load_weights(tell)
    except Exception:
        text.result()
        raise
    try:
        text.result()
    except BaseException:
        runtime.close()
        raise
    return runtime


class FileDigest(threading.Thread):
    """The SHA-256 of a file, computed beside the load."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="digest", daemon=True)
        self._path = path
        self.sha256: str | None = None

    def run(self) -> None:
        """Read the file; an unreadable one leaves `sha256` None (the loader says why)."""
        try:
            digest = hashlib.sha256()
            with self._path.open("rb") as file:
                while chunk := file.read(_DIGEST_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError:
            return
        self.sha256 = digest.hexdigest()


def import_for(device: str) -> Any:
    """The backend's module, after all that loading a model imports; errors as `import_backend`."""
    backend = import_backend(device)
    for name in _IMPORTED:
        importlib.import_module(name)
    return backend


def import_backend(device: str) -> Any:
    """The backend's module for a device; DeviceError names what is not installed."""
    try:
        return importlib.import_module(BACKENDS[backend_of(device)])
    except ImportError as error:
        missing = error.name or "a package"
        raise DeviceError(
            f"device {device}: {missing} is not installed; install haikugate[cuda12] or [cuda13]"
        ) from error


def _silent(_loaded: int, _total: int) -> None:
    return
