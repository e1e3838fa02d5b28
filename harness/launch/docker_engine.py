"""An engine that runs in a container."""

import atexit
import shlex
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from harness.clients import ClientFactory, EngineClient
from harness.errors import LaunchError
from harness.launch import ExitFacts, Launcher, LaunchSpec
from harness.launch.docker_container import Container
from harness.launch.docker_daemon import PORT_TAKEN, PortTakenError
from harness.launch.docker_files import SharedFiles
from harness.launch.docker_image import Image
from harness.launch.docker_seal import seal
from harness.launch.facts import process_facts
from harness.launch.process import file_sha256
from harness.observation import Json
from harness.transport import Endpoint

POLL_S: Final = 0.02
LAST_LINES: Final = 20


@dataclass(frozen=True)
class Guest:
    """A created container, what it was made from, and the Docker engine that made it."""

    container: Container
    image: Image
    files: SharedFiles
    docker_version: str


class DockerEngine:
    """One engine in one container; the container is removed when it is stopped."""

    def __init__(
        self,
        launcher: Launcher,
        spec: LaunchSpec,
        endpoint: Endpoint,
        client_factory: ClientFactory,
        guest: Guest,
    ) -> None:
        self.launcher = launcher
        self.spec = spec
        self.image = guest.image
        self.model_path: Path = spec.model_path
        self.base_url = endpoint.base_url
        self.uds = endpoint.uds
        self.stopped = False
        self.client: EngineClient = client_factory(endpoint)
        self._guest = guest
        self._container = guest.container
        self._confinement: dict[str, Json] = {}
        self._exit: ExitFacts | None = None
        atexit.register(self.stop, 0.0)

    @property
    def model_sha256(self) -> str:
        """The digest of the model file that is mounted, computed by the harness."""
        return file_sha256(self.model_path)

    def start(self, *, sealed: bool) -> None:
        """Run the container, and read back from Docker how it is confined.

        LaunchError where a seal was asked for and Docker reports that it does not hold.
        """
        self._container.start()
        self._confinement = seal(self._container.inspect())
        if sealed and not self._confinement["sealed"]:
            broken = [name for name, holds in self._confinement["seal"].items() if not holds]
            raise LaunchError(f"{self._name()}: the container is not sealed: {', '.join(broken)}")

    def await_ready(self) -> None:
        """Return once the engine answers; LaunchError if the container ends or time runs out."""
        deadline = time.monotonic() + self.spec.ready_timeout_s
        while time.monotonic() < deadline:
            if not self.alive():
                raise self._exited_early()
            if self._listens() and self.client.is_ready():
                return
            time.sleep(POLL_S)
        raise LaunchError(
            f"{self._name()}: not ready after {self.spec.ready_timeout_s} s{self._said()}"
        )

    def alive(self) -> bool:
        """Whether the container still runs."""
        return self._exit is None and self._container.state().running

    def log_lines(self) -> list[str]:
        """What it printed, newest lines last."""
        return self._container.lines()

    def process_facts(self) -> dict[str, Json] | None:
        """The engine's process as this machine sees it, else the container's own counters."""
        if not self.alive():
            return None
        pid = _engine_pid(self._container.state().pid)
        facts = None if pid is None else process_facts(pid)
        return {**(facts or self._container.usage()), "container_id": self._container.id}

    def container_facts(self) -> dict[str, Json]:
        """What a bundle records: the image by digest, and `sealed` as Docker reported it."""
        return {
            **self.image.facts(),
            **self._confinement,
            "container_id": self._container.id,
            "docker": self._guest.docker_version,
        }

    def signal(self, number: int) -> None:
        """Send a signal to the engine's process."""
        if self._exit is None:
            self._container.signal(number)

    def wait(self, timeout_s: float) -> ExitFacts:
        """Wait for it to end by itself; `timed_out` if it does not."""
        ended = self._container.wait(timeout_s)
        return self._finish(timed_out=not ended)

    def stop(self, timeout_s: float = 10.0) -> ExitFacts:
        """SIGTERM, then after `timeout_s` SIGKILL; returns how it ended."""
        self.stopped = True
        if self._exit is not None:
            return self._exit
        if timeout_s > 0 and self.alive():
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def _finish(self, *, timed_out: bool) -> ExitFacts:
        if self._exit is None:
            self._exit = self._container.end(timed_out=timed_out)
            self._guest.files.remove()
            atexit.unregister(self.stop)
        return self._exit

    def _listens(self) -> bool:
        return self.uds is None or Path(self.uds).exists()

    def _exited_early(self) -> LaunchError:
        self._container.drain()
        state = self._container.state()
        how = f"exited with code {state.code}"
        if state.oom_killed:
            how = "was killed for memory: its limit is too small (DockerOptions.memory_bytes)"
        text = f"{self._name()}: the container {how} before it was ready{self._said()}"
        taken = "address already in use" in text.lower()
        return PortTakenError(f"{text} ({PORT_TAKEN})") if taken else LaunchError(text)

    def _name(self) -> str:
        words = shlex.join((*self.spec.command, *self.spec.args))
        return f"engine {words[:200]} in image {self.image.name}"

    def _said(self) -> str:
        lines = self.log_lines()[-LAST_LINES:]
        return "; last lines: " + " | ".join(lines)[-2000:] if lines else "; it printed nothing"


def _engine_pid(init_pid: int) -> int | None:
    """The engine's process on this machine: the one child of the container's init."""
    try:
        children = psutil.Process(init_pid).children() if init_pid else []
    except psutil.Error:
        return None
    return children[0].pid if children else None
