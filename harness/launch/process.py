"""The process launcher: an engine in its own session, with a deadline, killed as a group."""

import atexit
import os
import secrets
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import Final

import psutil

from harness.clients import ClientFactory, EngineClient
from harness.clients.native import NativeClient
from harness.errors import LaunchError
from harness.launch import ExitFacts, LaunchSpec
from harness.launch.facts import listening_ports, process_facts
from harness.launch.guardian import Guardian
from harness.launch.logs import LogCapture
from harness.observation import Json
from harness.transport import Endpoint

PORT_ATTEMPTS: Final = 4
POLL_S: Final = 0.02
LAST_LINES: Final = 20

HIDDEN_PREFIXES: Final = ("HAIKUGATE_", "PYTEST_", "COV_")
"""Variables that would tell an engine that, and by which check, it is being tested."""


class ProcessLauncher:
    """Runs engines as child processes of the harness on loopback."""

    kind = "process"

    def __init__(
        self, client_factory: ClientFactory = NativeClient, log_dir: Path | None = None
    ) -> None:
        self._client_factory = client_factory
        self._log_dir = log_dir
        self._launched = 0

    def launch(self, spec: LaunchSpec) -> "ProcessEngine":
        """Start the engine and wait until it answers; on any failure nothing is left running."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._launched += 1
            engine = ProcessEngine(self, spec, self._client_factory, self._log_file())
            try:
                engine.await_ready()
            except _PortTakenError:
                engine.stop(timeout_s=2.0)
                if attempt == PORT_ATTEMPTS:
                    raise
            except BaseException:
                engine.stop(timeout_s=2.0)
                raise
            else:
                return engine
        raise AssertionError

    def run_to_exit(self, spec: LaunchSpec, timeout_s: float) -> ExitFacts:
        """Run the command until it ends by itself; after `timeout_s` its group is killed."""
        engine = ProcessEngine(self, spec, self._client_factory, self._log_file())
        try:
            return engine.wait(timeout_s)
        finally:
            engine.stop(timeout_s=0.0)

    def _log_file(self) -> Path | None:
        return self._log_dir and self._log_dir / f"engine-{os.getpid()}-{self._launched}.log"


class ProcessEngine:
    """An engine that runs as a process group of its own."""

    def __init__(
        self,
        launcher: ProcessLauncher,
        spec: LaunchSpec,
        client_factory: ClientFactory,
        log_file: Path | None,
    ) -> None:
        self.launcher = launcher
        self.spec = spec
        self.model_path = spec.model_path
        self.stopped = False
        self._private_dir = _private_dir(spec)
        private = None if self._private_dir is None else Path(self._private_dir.name)
        self.uds = str(private / "e.sock") if private and _names(spec, "{uds}") else None
        self.port = free_port()
        self.base_url = "http://engine" if self.uds else f"http://127.0.0.1:{self.port}"
        key_file = private / "api-key" if private and _names(spec, "{api_key_file}") else None
        api_key = None if key_file is None else _write_key(key_file)
        self.client: EngineClient = client_factory(Endpoint(self.base_url, self.uds, api_key))
        self._started = time.monotonic()
        words = {"{port}": str(self.port), "{uds}": self.uds or "", "{api_key_file}": str(key_file)}
        self.command = _filled(spec, words)
        self._exit: ExitFacts | None = None
        self._log = LogCapture(log_file)
        try:
            self._process = _spawn(self.command, spec.env)
        except LaunchError:
            self._log.join(0.0)
            self._remove_private()
            raise
        atexit.register(self._kill_group)
        self._guardian = Guardian(self.pid)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._log.follow("stdout", self._process.stdout)
        self._log.follow("stderr", self._process.stderr)

    @property
    def pid(self) -> int:
        """The process id of the engine's leader, which is also its group's id."""
        return self._process.pid

    @property
    def model_sha256(self) -> str:
        """The digest of the model file, computed by the harness."""
        return file_sha256(self.model_path)

    def await_ready(self) -> None:
        """Return once the engine itself answers; LaunchError if it ends or time runs out."""
        deadline = self._started + self.spec.ready_timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._exited_early()
            if self.client.is_ready():
                self._check_listener()
                return
            time.sleep(POLL_S)
        raise LaunchError(
            f"{self._name()}: not ready after {self.spec.ready_timeout_s} s{self._said()}"
        )

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def log_lines(self) -> list[str]:
        """What it printed, newest lines last."""
        return self._log.lines()

    def process_facts(self) -> dict[str, Json] | None:
        """The operating system's numbers; None once it is gone."""
        return process_facts(self.pid) if self.alive() else None

    def signal(self, number: int) -> None:
        """Send a signal to the leader."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> ExitFacts:
        """Wait for it to end by itself; `timed_out` if it does not."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self._ended(timed_out=True)
        return self._ended(timed_out=False)

    def stop(self, timeout_s: float = 10.0) -> ExitFacts:
        """SIGTERM, then after `timeout_s` SIGKILL for the whole group; returns how it ended."""
        self.stopped = True
        if self._exit is None:
            if self.alive():
                self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
            self._exit = self._ended(timed_out=self.alive())
            self._remove_private()
        return self._exit

    def _remove_private(self) -> None:
        if self._private_dir is not None:
            self._private_dir.cleanup()

    def _ended(self, *, timed_out: bool) -> ExitFacts:
        duration_s = time.monotonic() - self._started
        self._kill_group()
        self._process.wait()
        self._guardian.release()
        self._log.join()
        atexit.unregister(self._kill_group)
        return ExitFacts(
            code=self._process.returncode,
            stdout=self._log.text("stdout"),
            stderr=self._log.text("stderr"),
            duration_s=duration_s,
            pid=self.pid,
            timed_out=timed_out,
        )

    def _kill_group(self) -> None:
        strays = _descendants(self.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for stray in strays:
            with suppress(psutil.Error):
                stray.kill()

    def _check_listener(self) -> None:
        ports = None if self.uds else listening_ports(self.pid)
        if ports is not None and self.port not in ports:
            raise _PortTakenError(
                f"{self._name()}: port {self.port} is answered by another process, "
                f"the engine listens on {sorted(ports) or 'none'}"
            )

    def _exited_early(self) -> LaunchError:
        self._kill_group()  # a child it leaves behind would hold its output open
        self._log.join()
        text = f"{self._name()}: exited with code {self._process.returncode} before it was ready"
        kind = LaunchError if self.uds or _bindable(self.port) else _PortTakenError
        return kind(text + self._said())

    def _name(self) -> str:
        return f"engine {shlex.join(self.command)[:200]}"

    def _said(self) -> str:
        lines = self.log_lines()[-LAST_LINES:]
        return "; last lines: " + " | ".join(lines)[-2000:] if lines else "; it printed nothing"


class _PortTakenError(LaunchError):
    """The port that was free is taken by another process: worth another try."""


def free_port() -> int:
    """A TCP port of loopback that is free now; a launcher must expect to lose it again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, computed anew whenever its size or time changed."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size_bytes: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _filled(spec: LaunchSpec, words: Mapping[str, str]) -> tuple[str, ...]:
    filled = []
    for part in (*spec.kept_command, *spec.args):
        for name, value in {**words, "{model}": str(spec.model_path)}.items():
            part = part.replace(name, value)
        filled.append(part)
    return tuple(filled)


def _spawn(command: tuple[str, ...], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    own = {k: v for k, v in os.environ.items() if not k.startswith(HIDDEN_PREFIXES)}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**own, "PYTHONUNBUFFERED": "1", **env},
            start_new_session=True,
        )
    except (OSError, ValueError, IndexError) as error:
        raise LaunchError(f"engine {shlex.join(command)[:200]}: cannot start: {error}") from None


def _names(spec: LaunchSpec, word: str) -> bool:
    return any(word in part for part in (*spec.command, *spec.args))


def _private_dir(spec: LaunchSpec) -> "tempfile.TemporaryDirectory[str] | None":
    """A directory that only this user may enter, where the command needs one."""
    if not (_names(spec, "{uds}") or _names(spec, "{api_key_file}")):
        return None
    return tempfile.TemporaryDirectory(prefix="haikugate-")


def _write_key(path: Path) -> str:
    """A random API key, in a file that only this user may read."""
    key = secrets.token_hex(32)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return key


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
