"""The docker launcher: an engine in a container, sealed off from everything unless told not to."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from harness.clients import ClientFactory
from harness.clients.native import NativeClient
from harness.errors import LaunchError
from harness.launch import ExitFacts, LaunchSpec
from harness.launch.docker_container import Container
from harness.launch.docker_daemon import PortTakenError, connect, explained
from harness.launch.docker_engine import DockerEngine, Guest
from harness.launch.docker_files import SharedFiles, User
from harness.launch.docker_image import Image, OnPull, find_or_pull
from harness.launch.docker_owner import Owner, labels, remove_orphans
from harness.launch.docker_seal import (
    DockerOptions,
    confinement,
    guest_user,
    image_user,
    memory_limit,
)
from harness.launch.process import free_port
from harness.transport import Endpoint

PORT_ATTEMPTS: Final = 4
SOURCE_LABEL: Final = "org.haikugate.source.sha256"

ENGINE_COMMAND: Final = ("haikugate-engine", "serve", "--model", "{model}", "--uds", "{uds}")
"""What serves in the project's own image, which its label tells."""


class DockerLauncher:
    """Runs engines in containers of one image on this machine's Docker engine.

    A command's first word replaces the image's entrypoint, unless it is an option ("--…") or the
    command is empty (the project's own image is then started by `ENGINE_COMMAND`). `{model}` and
    `{uds}` become paths inside the container.
    """

    kind = "docker"

    def __init__(
        self,
        options: DockerOptions,
        client_factory: ClientFactory = NativeClient,
        log_dir: Path | None = None,
        on_pull: OnPull | None = None,
    ) -> None:
        self.options = options
        self._client_factory = client_factory
        self._log_dir = log_dir
        self._on_pull = on_pull
        self._docker: Any = None
        self._image: Image | None = None
        self._launched = 0

    def launch(self, spec: LaunchSpec) -> DockerEngine:
        """Start the engine and wait until it answers; on any failure nothing is left behind."""
        if not spec.command and SOURCE_LABEL in self.image().labels:
            spec = replace(spec, command=ENGINE_COMMAND)
        self._check_reachable(spec)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            engine = self._engine(spec)
            try:
                engine.start(sealed=self.options.sealed)
                engine.await_ready()
            except PortTakenError:
                engine.stop(timeout_s=0.0)
                if attempt == PORT_ATTEMPTS:
                    raise
            except BaseException:
                engine.stop(timeout_s=0.0)
                raise
            else:
                return engine
        raise AssertionError

    def run_to_exit(self, spec: LaunchSpec, timeout_s: float) -> ExitFacts:
        """Run the command in a fresh container until it ends; after `timeout_s` it is killed."""
        engine = self._engine(spec)
        started = time.monotonic()
        try:
            engine.start(sealed=self.options.sealed)
            return replace(engine.wait(timeout_s), duration_s=time.monotonic() - started)
        finally:
            engine.stop(timeout_s=0.0)

    def image(self) -> Image:
        """The image by its digest; pulled, with progress, where it is not here."""
        if self._image is None:
            self._image = find_or_pull(self._client(), self.options.image, self._on_pull)
        return self._image

    @property
    def sealed(self) -> bool:
        """Whether every engine runs sealed: one whose seal does not hold is not launched."""
        return self.options.sealed

    @property
    def image_digest(self) -> str:
        """What identifies the engine: the SHA-256 id of its image."""
        return self.image().id

    def docker_version(self) -> str:
        """The version of the Docker engine."""
        with explained("docker"):
            return str(self._client().version().get("Version", "unknown"))

    def close(self) -> None:
        """Let go of the Docker engine; engines that still run are not touched."""
        if self._docker is not None:
            self._docker.close()
            self._docker = None

    def _client(self) -> Any:
        if self._docker is None:
            self._docker = connect()
            remove_orphans(self._docker)
        return self._docker

    def _engine(self, spec: LaunchSpec) -> DockerEngine:
        client, image = self._client(), self.image()
        user, user_option = self._user(spec, image)
        files = SharedFiles.make(user)
        port = free_port()
        try:
            settings = self._settings(spec, image, files, port)
            container = Container(client, self._log_file(), {**settings, "user": user_option})
        except BaseException:
            files.remove()
            raise
        over_socket = _mentions(spec, "{uds}")
        base_url = "http://engine" if over_socket else f"http://127.0.0.1:{port}"
        endpoint = Endpoint(base_url, files.uds if over_socket else None)
        guest = Guest(container, image, files, self.docker_version())
        return DockerEngine(self, spec, endpoint, self._client_factory, guest)

    def _settings(
        self, spec: LaunchSpec, image: Image, files: SharedFiles, port: int
    ) -> dict[str, Any]:
        words = {"{model}": files.model(spec.model_path), "{uds}": files.guest_uds}
        command = [_filled(word, {**words, "{port}": str(port)}) for word in spec.kept_command]
        args = [_filled(word, {**words, "{port}": str(port)}) for word in spec.args]
        own_entrypoint = not command or command[0].startswith("-")
        line = [*command, *files.arguments(args)]
        published = {} if self.options.sealed or not _mentions(spec, "{port}") else {
            f"{port}/tcp": ("127.0.0.1", port)
        }  # fmt: skip
        return {
            **confinement(self.options, memory_limit(self.options, _size(spec.model_path))),
            "image": image.id,
            "name": f"haikugate-{uuid4().hex[:12]}",
            "command": line if own_entrypoint else line[1:],
            **({} if own_entrypoint else {"entrypoint": line[:1]}),
            "environment": dict(spec.env),
            "mounts": files.mounts,
            "ports": published,
            "labels": labels(Owner.current(), files.root),
        }

    def _user(self, spec: LaunchSpec, image: Image) -> tuple[User, str | None]:
        if not self.options.sealed and not _mentions(spec, "{uds}"):
            return image_user(image.user), None
        with explained("docker"):
            return guest_user(self._client().info().get("SecurityOptions") or ())

    def _check_reachable(self, spec: LaunchSpec) -> None:
        if _mentions(spec, "{uds}") or (not self.options.sealed and _mentions(spec, "{port}")):
            return
        if self.options.sealed:
            raise LaunchError(
                "docker: a sealed container has no network, so its command must listen on {uds}; "
                f"got {' '.join(spec.command)!r}: add an option such as --uds {{uds}}, or launch "
                "it unsealed with {port}"
            )
        raise LaunchError(
            f"docker: the command must name where it listens, {{uds}} or {{port}}; "
            f"got {' '.join(spec.command)!r}"
        )

    def _log_file(self) -> Path | None:
        self._launched += 1
        return self._log_dir and self._log_dir / f"engine-{os.getpid()}-{self._launched}.log"


def _mentions(spec: LaunchSpec, name: str) -> bool:
    return any(name in word for word in (*spec.command, *spec.args))


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
