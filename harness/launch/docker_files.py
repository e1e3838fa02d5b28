"""What a container may see of this machine: the model, files its arguments name, one socket."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.errors import LaunchError
from harness.launch.docker_owner import DIRECTORY_PREFIX

SOCKET_DIRECTORY: Final = "/run/haikugate"
MODEL_DIRECTORY: Final = "/models"
INPUT_DIRECTORY: Final = "/inputs"
MAX_SOCKET_PATH_BYTES: Final = 100
MAX_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class User:
    """Who the container's process is, on this machine's side of the mounts; -1 = not known."""

    uid: int
    gid: int

    def can_read(self, path: Path) -> bool:
        """Whether the file's mode lets this user read it."""
        if self.uid == 0:
            return True
        stat = path.stat()
        bits = (
            (stat.st_mode >> 6)
            if stat.st_uid == self.uid
            else (stat.st_mode >> 3)
            if stat.st_gid == self.gid
            else stat.st_mode
        )
        return bool(bits & 4)


@dataclass
class SharedFiles:
    """A private directory for the socket and for copies, and the mounts of one container."""

    user: User
    root: Path
    mounts: list[Any] = field(default_factory=list)

    @classmethod
    def make(cls, user: User) -> "SharedFiles":
        """A fresh private directory that only the container's user (and root) can enter."""
        root = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=_short_directory()))
        socket_directory = root / "socket"
        socket_directory.mkdir(mode=0o700)
        for directory in (root, socket_directory):
            _give(directory, user)
        files = cls(user, root)
        files._mount(socket_directory, SOCKET_DIRECTORY, read_only=False)
        return files

    @property
    def uds(self) -> str:
        """The socket's path on this machine."""
        return str(self.root / "socket" / "e.sock")

    @property
    def guest_uds(self) -> str:
        """The same socket's path in the container."""
        return f"{SOCKET_DIRECTORY}/e.sock"

    def model(self, path: Path) -> str:
        """Mount the model read-only; returns its path in the container.

        A model that does not exist is not mounted: the engine has to say so itself.
        """
        guest = f"{MODEL_DIRECTORY}/{path.name}"
        if path.exists():
            self._share(path.resolve(), guest)
        return guest

    def arguments(self, arguments: Sequence[str]) -> list[str]:
        """The arguments, with every file of this machine that they name mounted read-only."""
        return [self._argument(argument) for argument in arguments]

    def remove(self) -> None:
        """Delete the private directory."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _argument(self, argument: str) -> str:
        option, equals, value = argument.rpartition("=")
        path = Path(value)
        if not path.is_absolute() or not path.is_file():
            return argument
        guest = f"{INPUT_DIRECTORY}/{len(self.mounts)}-{path.name}"
        self._share(path.resolve(), guest)
        return f"{option}{equals}{guest}"

    def _share(self, path: Path, guest: str) -> None:
        readable = path if self.user.can_read(path) else self._copy(path)
        if all(mount["Target"] != guest for mount in self.mounts):
            self._mount(readable, guest, read_only=True)

    def _copy(self, path: Path) -> Path:
        if not path.is_file() or path.stat().st_size > MAX_COPY_BYTES:
            raise LaunchError(
                f"docker: {path}: the container's user {self.user.uid} cannot read it "
                f"(mode {path.stat().st_mode & 0o777:o}); run: chmod a+r {path}"
            )
        copy = self.root / f"{len(self.mounts)}-{path.name}"
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o400)
        _give(copy, self.user)
        return copy

    def _mount(self, source: Path, target: str, *, read_only: bool) -> None:
        from docker.types import Mount

        self.mounts.append(Mount(target, str(source), type="bind", read_only=read_only))


def _give(path: Path, user: User) -> None:
    if os.geteuid() == 0 and user.uid >= 0:
        os.chown(path, user.uid, user.gid)


def _short_directory() -> str:
    usual = tempfile.gettempdir()
    longest = f"{usual}/{DIRECTORY_PREFIX}12345678/socket/e.sock"
    return usual if len(os.fsencode(longest)) <= MAX_SOCKET_PATH_BYTES else "/tmp"  # noqa: S108
