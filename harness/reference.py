"""The reference engine: the harness's own installation, started after the engine under test ended.

It is never found on PATH nor in the folder of the run. It runs the same model file by digest, and
listens on a private UNIX socket where it asks for a random key: an engine that still ran could not
use it as an oracle.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.clients import EngineClient
from harness.clients.native import NativeClient
from harness.clients.openai import OpenAIClient
from harness.installation import own_modules
from harness.launch import LaunchSpec, RunningEngine
from harness.launch.process import ProcessLauncher

COMMAND = (
    *(sys.executable, "-m", "engine.cli", "serve"),
    *("--model", "{model}", "--uds", "{uds}", "--api-key-file", "{api_key_file}"),
)
READY_TIMEOUT_S = 120.0


def client_like(client: EngineClient, reference: RunningEngine) -> EngineClient:
    """A client of the reference by the same API as this one, or by the most general that it has."""
    if client.kind == NativeClient.kind:
        return reference.client
    return OpenAIClient(reference.client.http.endpoint)


@contextmanager
def reference_engine(model: Path, *args: str) -> Iterator[RunningEngine]:
    """A reference process for this model file; it ends with the block."""
    launcher = ProcessLauncher(NativeClient, None)
    ours = own_modules()
    spec = LaunchSpec(COMMAND, model, args=args, env=ours, ready_timeout_s=READY_TIMEOUT_S)
    running = launcher.launch(spec)
    try:
        yield running
    finally:
        running.stop()
