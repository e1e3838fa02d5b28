"""Whose containers are whose: labels, and the removal of those whose harness is gone."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from harness.launch.docker_daemon import explained

OWNER: Final = "org.haikugate.owner"
DIRECTORY: Final = "org.haikugate.directory"
DIRECTORY_PREFIX: Final = "haikugate-"


@dataclass(frozen=True)
class Owner:
    """One harness process: its boot, its PID namespace, its PID and its start time."""

    boot: str
    namespace: str
    pid: int
    create_time: str

    @classmethod
    def current(cls) -> "Owner":
        """This process."""
        return cls(_boot(), _namespace(), os.getpid(), _create_time(os.getpid()) or "")

    @classmethod
    def parse(cls, label: str) -> "Owner | None":
        """The owner that a label names; None for a label that is not ours."""
        parts = label.split(" ")
        if len(parts) != 4 or not parts[2].isdecimal():
            return None
        return cls(parts[0], parts[1], int(parts[2]), parts[3])

    def label(self) -> str:
        """The owner as a label's value."""
        return f"{self.boot} {self.namespace} {self.pid} {self.create_time}"

    def gone(self) -> bool:
        """Whether it certainly runs no more; one that cannot be seen from here is not gone."""
        if self.boot != _boot():
            return True
        return self.namespace == _namespace() and _create_time(self.pid) != self.create_time


def labels(owner: Owner, directory: Path) -> dict[str, str]:
    """The labels by which a later run finds this container and its private directory."""
    return {OWNER: owner.label(), DIRECTORY: str(directory)}


def remove_orphans(client: Any) -> list[str]:
    """Remove the containers, and their directories, of runs that were killed; returns their ids."""
    with explained("docker: removing containers of killed runs"):
        found = client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True)
    return [container.id for container in found if _remove_if_orphan(container)]


def _remove_if_orphan(container: Any) -> bool:
    owner = Owner.parse(container.labels.get(OWNER, ""))
    if owner is None or not owner.gone():
        return False
    remove(container)
    _remove_directory(container.labels)
    return True


def remove(container: Any) -> None:
    """Kill and remove a container; one that is already gone is fine."""
    import docker.errors

    with explained(f"docker: removing container {container.short_id}"):
        try:
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise


def _remove_directory(of_container: Mapping[str, str]) -> None:
    directory = Path(of_container.get(DIRECTORY, ""))
    if directory.is_absolute() and directory.name.startswith(DIRECTORY_PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{psutil.boot_time():.0f}"


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return "host"


def _create_time(pid: int) -> str | None:
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return ""
