"""How an engine comes to run: as a process, in a container, or already somewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.clients import EngineClient
from harness.observation import Json


@dataclass(frozen=True)
class LaunchSpec:
    """What to launch: a command template with {port} or {uds}, and {model}.

    `args` follow the command; an option that they give anew takes the place of the command's. `env`
    is laid over the launcher's own environment. The process launcher also knows {api_key_file}: a
    random key, which the engine's client then sends.
    """

    command: tuple[str, ...]
    model_path: Path
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 60.0

    @property
    def kept_command(self) -> tuple[str, ...]:
        """The command less the options, and their values, that `args` give anew."""
        given = {word.partition("=")[0] for word in self.args if word.startswith("--")}
        kept, drops_value = list[str](), False
        for word in self.command:
            name, has_value, _ = word.partition("=")
            if word.startswith("--") or not drops_value:
                drops_value = name in given and not has_value
                kept += () if name in given else (word,)
            else:
                drops_value = False
        return tuple(kept)


@dataclass(frozen=True)
class ExitFacts:
    """How a process ended. `code` is negative for a signal, None where nobody can know it.

    `timed_out`: the harness killed it because its time was over. `oom_killed`: the kernel killed it
    at a memory limit (only a container's launcher can know).
    """

    code: int | None
    stdout: str
    stderr: str
    duration_s: float
    pid: int | None
    timed_out: bool = False
    oom_killed: bool = False


class RunningEngine(Protocol):
    """One launched engine. `stopped` means that the harness stopped it, not that it died."""

    @property
    def client(self) -> EngineClient: ...

    @property
    def base_url(self) -> str: ...

    @property
    def uds(self) -> str | None: ...

    @property
    def model_path(self) -> Path: ...

    @property
    def model_sha256(self) -> str: ...

    @property
    def spec(self) -> LaunchSpec: ...

    @property
    def launcher(self) -> "Launcher": ...

    @property
    def stopped(self) -> bool: ...

    def log_lines(self) -> list[str]: ...

    def process_facts(self) -> dict[str, Json] | None: ...

    def signal(self, number: int) -> None: ...

    def alive(self) -> bool: ...

    def stop(self, timeout_s: float = 10.0) -> ExitFacts: ...


class Launcher(Protocol):
    """Starts engines of one kind; LaunchError says in one line why one does not run."""

    @property
    def kind(self) -> str: ...

    def launch(self, spec: LaunchSpec) -> RunningEngine: ...

    def run_to_exit(self, spec: LaunchSpec, timeout_s: float) -> ExitFacts: ...


LaunchEngine = Callable[..., RunningEngine]
"""The fixture `launch_engine(*args, model=None, env=None)`."""
