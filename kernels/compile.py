"""CUDA C++ to machine code by NVRTC, no GPU needed, with a disk cache."""

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kernels.errors import KernelCompileError

SOURCE_DIR = Path(__file__).parent
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
OPTIONS = ("-std=c++17", "--extra-device-vectorization")
_OWN_TARGETS = {("gemm_warpgroup.cu", "sm_90"): "sm_90a"}  # instructions of one chip only
_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
_CHECKSUM_BYTES = 32


@dataclass(frozen=True)
class Unit:
    """One compilation: a source file and the template entries to make from it."""

    source: str
    entries: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole source, includes expanded once each."""
        return expand(self.source) + self.entries_text

    @property
    def entries_text(self) -> str:
        """What follows the source's own text."""
        return "\n" + "\n".join(self.entries) + "\n"


@cache
def expand(name: str) -> str:
    """The text of a kernel source with its own headers in place; each header once."""
    seen: set[str] = set()

    def read(file_name: str) -> str:
        if file_name in seen:
            return ""
        seen.add(file_name)
        text = (SOURCE_DIR / file_name).read_text("utf-8").replace("#pragma once", "")
        return _INCLUDE.sub(lambda match: read(match[1]), text)

    return read(name)


@cache
def _source_digest(name: str) -> Any:
    """The digest of `expand(name)`, to be copied and gone on with."""
    return hashlib.sha256(expand(name).encode())


def source_names() -> list[str]:
    """Every .cu file, sorted."""
    return sorted(path.name for path in SOURCE_DIR.glob("*.cu"))


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelCompileError(
            f"NVRTC is not installed ({error}); install haikugate[cuda13] or haikugate[cuda12]"
        ) from None
    return nvrtc


def _call(function: Any, *arguments: Any) -> Any:
    status, *values = function(*arguments)
    if int(status) != 0:
        raise KernelCompileError(f"{function.__name__} failed: {status}")
    return values[0] if values else None


def nvrtc_version() -> tuple[int, int]:
    """NVRTC's (major, minor); raises KernelCompileError where it is missing."""
    status, major, minor = _nvrtc().nvrtcVersion()
    if int(status) != 0:
        raise KernelCompileError(f"nvrtcVersion failed: {status}")
    return int(major), int(minor)


def compile_unit(unit: Unit, architecture: str) -> bytes:
    """The cubin of a unit for `sm_NN`; raises KernelCompileError with the first error line."""
    nvrtc = _nvrtc()
    name = unit.source.encode()
    program = _call(nvrtc.nvrtcCreateProgram, unit.text.encode(), name, 0, [], [])
    try:
        target = _OWN_TARGETS.get((unit.source, architecture), architecture)
        options = [option.encode() for option in (*OPTIONS, f"-arch={target}")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            raise KernelCompileError(f"{unit.source} for {architecture}: {_first_error(program)}")
        cubin = b"\0" * _call(nvrtc.nvrtcGetCUBINSize, program)
        _call(nvrtc.nvrtcGetCUBIN, program, cubin)
        return bytes(cubin)
    finally:
        _call(nvrtc.nvrtcDestroyProgram, program)


def _first_error(program: Any) -> str:
    nvrtc = _nvrtc()
    log = b"\0" * _call(nvrtc.nvrtcGetProgramLogSize, program)
    _call(nvrtc.nvrtcGetProgramLog, program, log)
    lines = log.decode("utf-8", "replace").rstrip("\0").splitlines()
    return next((line for line in lines if "error" in line), " ".join(lines[:1]))


def cache_dir() -> Path:
    """Where compiled kernels are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "haikugate" / "kernels"


def cached_cubin(unit: Unit, architecture: str, directory: Path | None = None) -> bytes:
    """The cubin of a unit from the disk cache, compiled and kept there if it is not or is damaged.

    The key is the expanded source, the architecture, the options and NVRTC's version; a file
    carries its own SHA-256 and appears by an atomic rename, so a reader sees a whole file or none.
    """
    directory = directory or cache_dir()
    key = _source_digest(unit.source).copy()
    key.update(f"{unit.entries_text}\n{architecture}\n{OPTIONS}\n{nvrtc_version()}".encode())
    path = directory / f"{key.hexdigest()}.cubin"
    cubin = _read_checked(path)
    if cubin is None:
        cubin = compile_unit(unit, architecture)
        _write_checked(path, cubin)
    return cubin


def _read_checked(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, cubin = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == checksum else None


def _write_checked(path: Path, cubin: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(cubin).digest() + cubin)
        Path(file.name).replace(path)
    except OSError:
        return  # an unwritable cache costs time, not correctness
