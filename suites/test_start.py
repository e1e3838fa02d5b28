"""Gate 1 and 4: how the engine starts, fails to start, and what it is made of."""

import uuid
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import pytest

import harness
from harness.closure import distributions, imported_modules, project_files
from harness.launch import LaunchEngine, Launcher, LaunchSpec, RunningEngine
from harness.launch.logs import lines_after
from harness.observation import Observe

STARTING = ("startup", "model_load", "ready", "error", "shutdown")


@pytest.mark.check("G1-START-ORDER", "G4-PROGRESS")
def test_start_order(launch_engine: LaunchEngine, observe: Observe) -> None:
    begun_s = monotonic()
    engine = launch_engine()
    ready_s = monotonic() - begun_s
    observe(
        health=engine.client.health(),
        log_lines=start_lines(engine),
        ready_s=ready_s,
        model_sha256=engine.model_sha256,
        model_bytes=engine.model_path.stat().st_size,
    )


@pytest.mark.check("G1-START-CALLBACK")
def test_ready_callback(launch_engine: LaunchEngine, observe: Observe) -> None:
    worker_id = str(uuid.uuid4())
    with CallbackServer() as server:
        engine = launch_engine("--callback-url", server.url, "--worker-id", worker_id)
        server.wait(60.0)
        observe(
            callbacks=server.calls,
            worker_id=worker_id,
            health=engine.client.health(),
            model_sha256=engine.model_sha256,
        )


FAILURES: dict[str, tuple[str, ...]] = {
    "missing-file": (),
    "not-gguf": (),
    "truncated": (),
    "empty": (),
    "no-memory": ("--memory-limit-mb", "16"),
    "no-device": ("--device", "cuda:97"),
}


@pytest.mark.check("G1-START-FAIL")
@pytest.mark.parametrize("case", FAILURES)
def test_start_fails(
    case: str, launcher: Launcher, launch_spec: LaunchSpec, tmp_path: Path, observe: Observe
) -> None:
    model = damaged(case, launch_spec.model_path, tmp_path)
    spec = replace(launch_spec, model_path=model, args=(*launch_spec.args, *FAILURES[case]))
    ended = launcher.run_to_exit(spec, 60.0)
    observe(exit=asdict(ended), model_name=model.name)


BAD_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "unknown-option": ("--no-such-option",),
    "port-out-of-range": ("--port", "70000"),
    "port-no-number": ("--port", "many"),
    "device-no-device": ("--device", "tpu"),
    "public-without-key": ("--host", "0.0.0.0"),  # noqa: S104
}


@pytest.mark.check("G1-START-FAIL")
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(
    case: str, launcher: Launcher, launch_spec: LaunchSpec, observe: Observe
) -> None:
    command = on_a_port(launch_spec.command)
    spec = replace(launch_spec, command=command, args=(*launch_spec.args, *BAD_ARGUMENTS[case]))
    observe(exit=asdict(launcher.run_to_exit(spec, 30.0)))


def on_a_port(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command, listening on a port where it would on a socket: there no host is too public."""
    ports = {"--uds": "--port", "{uds}": "{port}"}
    return tuple(ports.get(word, word) for word in command)


@pytest.mark.check("G1-NO-LLAMACPP")
def test_no_forbidden_library(engine: RunningEngine, observe: Observe) -> None:
    engine.client.execute(prompt="Hello", max_tokens=2, temperature=0.0)
    root = Path(harness.__file__).parent.parent
    files = project_files(root, ("harness", "engine", "kernels", "suites"))
    facts = engine.process_facts() or {}
    observe(
        distributions=distributions("haikugate"),
        imports=imported_modules(files),
        files=[path.relative_to(root).as_posix() for path in files],
        maps=facts.get("maps"),
        open_files=facts.get("open_files") or [engine.model_path.name],
        model_name=engine.model_path.name,
    )


def start_lines(engine: RunningEngine) -> list[str]:
    """The narration of the start."""
    lines = lines_after(engine, '"ready"')
    return [line for line in lines if any(f'"{word}' in line for word in STARTING)]


def damaged(case: str, model: Path, directory: Path) -> Path:
    """A model file that cannot be loaded, or the good one where the file is not the case."""
    path = directory / f"{case}.gguf"
    if case == "not-gguf":
        path.write_bytes(b"not a model at all " * 64)
    elif case == "truncated":
        with model.open("rb") as whole:
            path.write_bytes(whole.read(4 << 20))
    elif case == "empty":
        path.write_bytes(b"")
    elif case != "missing-file":
        return model
    return path


class CallbackServer:
    """Listens on loopback for ready callbacks."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = min(int(self.headers.get("Content-Length") or 0), 1 << 20)
                body = self.rfile.read(length).decode("utf-8", errors="replace")
                calls.append({"method": self.command, "path": self.path, "body": body})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/ready"

    def __enter__(self) -> "CallbackServer":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, timeout_s: float) -> None:
        """Wait until a callback has come."""
        deadline = monotonic() + timeout_s
        while not self.calls and monotonic() < deadline:
            sleep(0.02)
