"""The Docker engine on this machine, and what its refusals mean in one line."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from harness.errors import LaunchError

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
API_TIMEOUT_S: Final = 120
KNOCK_TIMEOUT_S: Final = 10.0
PORT_TAKEN: Final = "the port is taken by another process"


class PortTakenError(LaunchError):
    """The port that was free is taken by another process: worth another try."""


MEANINGS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"permission denied",
        "no permission on the Docker engine's socket: add this user to the group docker, "
        "or use rootless Docker",
    ),
    (
        r"could not select device driver|nvidia-container-cli|unknown or invalid runtime|"
        r"unresolvable CDI devices|failed to discover GPU",
        "the GPU runtime is missing in Docker: install the NVIDIA Container Toolkit, run "
        "`nvidia-ctk runtime configure --runtime=docker` and restart Docker",
    ),
    (
        r"port is already allocated|address already in use",
        PORT_TAKEN,
    ),
    (
        r"executable file not found|no such file or directory: unknown",
        "the image does not have the command; name one that it has, or an image that has it",
    ),
    (
        r"no space left on device",
        "the disk of the Docker engine is full: `docker system df` shows by what",
    ),
    (
        r"connection refused|no such file or directory|connection aborted|error while fetching",
        "the Docker engine does not run here: start it (`sudo systemctl start docker`), "
        "or set DOCKER_HOST",
    ),
)


def connect() -> Any:
    """A client of this machine's Docker engine (DOCKER_HOST, or the usual socket); it answered."""
    import docker

    _knock(os.environ.get("DOCKER_HOST") or DEFAULT_HOST)
    with explained("docker"):
        client = docker.from_env(timeout=API_TIMEOUT_S)
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
    return client


def _knock(host: str) -> None:
    if not host.startswith("unix://"):
        raise LaunchError(
            f"docker: DOCKER_HOST names {host}; the launcher shares files and a socket with the "
            "container, so it needs the Docker engine of this machine: unset DOCKER_HOST"
        )
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(KNOCK_TIMEOUT_S)
            probe.connect(host.removeprefix("unix://"))
    except OSError as error:
        raise LaunchError(f"docker: {host}: {meaning(str(error))}") from None


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turns what the SDK raises into a LaunchError that says what to do."""
    import docker.errors
    import requests.exceptions

    try:
        yield
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        said = meaning(str(error))
        kind = PortTakenError if said.startswith(PORT_TAKEN) else LaunchError
        raise kind(f"{where}: {said}") from error


def meaning(text: str) -> str:
    """What a refusal of the Docker engine means and what to do, then its own words, shortened."""
    for pattern, sentence in MEANINGS:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{sentence} ({text[:300]})"
    return text[:600]
