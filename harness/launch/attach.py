"""The attach launcher: an engine that somebody else runs; nothing about its process is proven."""

import time
from pathlib import Path

from harness.clients import ClientFactory
from harness.clients.native import NativeClient
from harness.errors import LaunchError
from harness.launch import ExitFacts, LaunchSpec
from harness.launch.process import POLL_S, file_sha256
from harness.observation import Json
from harness.transport import Endpoint


class AttachLauncher:
    """Gives access to one engine at a URL; it can neither start nor stop it."""

    kind = "attach"

    def __init__(self, endpoint: Endpoint, client_factory: ClientFactory = NativeClient) -> None:
        self._endpoint = endpoint
        self._client_factory = client_factory

    def launch(self, spec: LaunchSpec) -> "AttachedEngine":
        """Wait until the engine answers; the command of `spec` is not run."""
        engine = AttachedEngine(self, spec, self._endpoint, self._client_factory)
        deadline = time.monotonic() + spec.ready_timeout_s
        while not engine.client.is_ready():
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"engine at {engine.base_url}: no answer within {spec.ready_timeout_s} s; "
                    f"start it first, or give a command to launch"
                )
            time.sleep(POLL_S)
        return engine

    def run_to_exit(self, spec: LaunchSpec, timeout_s: float) -> ExitFacts:
        """Always LaunchError: there is no process to run."""
        raise LaunchError(
            f"engine at {self._endpoint.base_url}: attached, so {spec.command[:1]} cannot be run"
        )


class AttachedEngine:
    """An engine at a URL."""

    def __init__(
        self,
        launcher: AttachLauncher,
        spec: LaunchSpec,
        endpoint: Endpoint,
        client_factory: ClientFactory,
    ) -> None:
        self.launcher = launcher
        self.spec = spec
        self.model_path: Path = spec.model_path
        self.base_url = endpoint.base_url
        self.uds = endpoint.uds
        self.client = client_factory(endpoint)
        self.stopped = False

    @property
    def model_sha256(self) -> str:
        """The digest of the harness's copy of the model: what the engine should have loaded."""
        return file_sha256(self.model_path)

    def log_lines(self) -> list[str]:
        """Nothing: its output goes elsewhere."""
        return []

    def process_facts(self) -> dict[str, Json] | None:
        """None: the process may be on another machine."""
        return None

    def signal(self, number: int) -> None:
        """Always LaunchError: the process is not ours."""
        raise LaunchError(f"engine at {self.base_url}: attached, so signal {number} cannot be sent")

    def alive(self) -> bool:
        """Whether it answers, in whatever time a busy machine takes."""
        return self.client.health().status == 200

    def stop(self, timeout_s: float = 10.0) -> ExitFacts:
        """Leave it as it is."""
        return ExitFacts(code=None, stdout="", stderr="", duration_s=0.0, pid=None)
