"""The engine under test: how it is launched, on which device, and what identifies it."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.errors import LaunchError, UsageError
from harness.launch import Launcher, LaunchSpec, RunningEngine
from harness.observation import Json
from harness.profiles import PROFILES
from harness.pseudonyms import without_secrets

DEFAULT_MODEL = "smollm2-135m-instruct"
REFERENCE_COMMAND = (
    *(sys.executable, "-m", "engine.cli", "serve"),
    *("--model", "{model}", "--port", "{port}"),
)
READY_TIMEOUT_S = 120.0
DEFAULT_IMAGE = "haikugate-engine"


@dataclass(frozen=True)
class EngineOptions:
    """What the command line says about the engine; `gpus` are device indices, `worker` ours."""

    profile: str
    launcher: str = "process"
    kind: str = "native"
    command: str = ""
    url: str = ""
    image: str = ""
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    gpus: tuple[str, ...] = ()
    worker: int = 0
    ready_timeout_s: float = READY_TIMEOUT_S

    @property
    def ours(self) -> bool:
        """Whether the engine is this installation's reference engine."""
        return not (self.command or self.url or self.image)

    @property
    def gpu(self) -> str | None:
        """The one GPU of this worker: index `worker` modulo their number."""
        return self.gpus[self.worker % len(self.gpus)] if self.gpus else None

    @property
    def container_gpus(self) -> tuple[str, ...] | None:
        """What a container gets: this worker's GPU, all of them (), or none in profile cpu."""
        if self.gpu is not None:
            return (self.gpu,)
        return () if PROFILES[self.profile].device_args else None


def default_launcher(url: str, image: str) -> str:
    """What brings up an engine of which only this is said."""
    return "attach" if url else "docker" if image else "process"


def refuse_conflicts(options: EngineOptions) -> None:
    """Raises UsageError for options that do not go together."""
    given = {"attach": options.url, "docker": options.image, "process": options.command}
    flags = {"attach": "--engine-url", "docker": "--image", "process": "--engine-command"}
    for launcher, value in given.items():
        if value and launcher != options.launcher and launcher != "process":
            raise UsageError(f"{flags[launcher]} needs --launcher {launcher}")
    if options.launcher == "attach" and not options.url:
        raise UsageError("--launcher attach needs --engine-url URL")
    if options.launcher == "attach" and options.command:
        raise UsageError("--engine-command cannot be run by --launcher attach")
    _refuse_unknown(options)
    _refuse_secret_url(options.url)
    _refuse_generated(options)


def _refuse_secret_url(url: str) -> None:
    """What is attached to is published with the evidence."""
    if "@" in url or "?" in url:
        raise UsageError("--engine-url: wanted no user, password or query: bundles show it whole")


def _refuse_unknown(options: EngineOptions) -> None:
    """What would only be found out by the first test, after minutes of waiting."""
    from harness.clients import engine_kinds

    if options.kind not in engine_kinds():
        raise UsageError(
            f"--engine: wanted one of {', '.join(engine_kinds())}, got {options.kind!r}"
        )
    if options.url and not re.fullmatch(r"https?://[^/\s]+\S*", options.url):
        raise UsageError(f"--engine-url: wanted http://HOST:PORT, got {options.url!r}")


def _refuse_generated(options: EngineOptions) -> None:
    """A certificate of profile m0 is about the published weights and no others."""
    from harness.models import is_generated

    for name in options.models if options.profile == "m0" else ():
        path = _file(name)
        if isinstance(path, Path) and is_generated(path):
            raise UsageError(f"--profile m0: {name} has generated weights, wanted published ones")


class EngineUnderTest:
    """Launches what the options describe, as often as the suites ask."""

    def __init__(self, options: EngineOptions, log_dir: Path | None = None) -> None:
        refuse_conflicts(options)
        self.options = options
        self._log_dir = log_dir

    @cached_property
    def launcher(self) -> Launcher:
        """The launcher of the options, with the client of the engine's kind."""
        return LAUNCHERS[self.options.launcher](self.options, self._log_dir)

    @cached_property
    def model_path(self) -> Path:
        """The first model's file; raises ModelFileError saying how to get it."""
        from harness import models

        return models.resolve(self.options.models[0])

    @property
    def command(self) -> tuple[str, ...]:
        """The command template to launch."""
        if self.options.command:
            return tuple(shlex.split(self.options.command))
        if not self.options.ours:
            return ()
        device = () if self.options.profile == "cpu" else ("--device", "cuda:0")
        if self.options.launcher == "docker":
            from harness.launch.docker import ENGINE_COMMAND

            return ENGINE_COMMAND + device
        return REFERENCE_COMMAND + device

    def spec(self, model: Path | None = None) -> LaunchSpec:
        """What is launched by default, or the same with another model file."""
        gpu = self.options.gpu
        chosen = gpu is not None and self.options.launcher != "docker"
        env = {"CUDA_VISIBLE_DEVICES": str(gpu)} if chosen else {}
        if self.options.ours and self.options.launcher == "process":
            from harness.installation import own_modules

            env |= own_modules()
        timeout_s = self.options.ready_timeout_s
        return LaunchSpec(
            self.command, model or self.model_path, env=env, ready_timeout_s=timeout_s
        )

    def launch(
        self,
        args: Sequence[str] = (),
        *,
        model: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> RunningEngine:
        """Launch one engine with further arguments; raises LaunchError."""
        if self.options.launcher == "attach" and (args or model or env):
            raise LaunchError(
                f"engine at {self.options.url}: attached, so it cannot be launched again with"
                f" {' '.join(args) or 'another model or environment'}"
            )
        spec = self.spec(model)
        return self.launcher.launch(
            replace(spec, args=(*spec.args, *args), env={**spec.env, **(env or {})})
        )

    def asked(self) -> dict[str, Json]:
        """What the options name, as a bundle shows it: the same on every machine."""
        options = self.options
        return {
            "kind": options.kind,
            "launcher": options.launcher,
            "ours": options.ours,
            "command": without_secrets([_without_machine(part) for part in self.command]),
            "url": options.url or None,
            "image": options.image or None,
        }

    def identity(self) -> dict[str, Json]:
        """What really ran: what was asked for, and the digest of its files or image."""
        return {
            **self.asked(),
            "sealed": getattr(self.launcher, "sealed", False),
            "digest": self._digest(),
        }

    def _digest(self) -> str | None:
        from harness.engine_files import command_files
        from harness.installation import engine_digest, installation, tree_digest

        if self.options.ours and self.options.launcher != "docker":
            return engine_digest(installation()["files"])
        if self.options.launcher == "docker":
            image = getattr(self.launcher, "image_digest", None)
            return None if image is None else str(image)
        files = command_files(self.command)
        return tree_digest(files) if files else None

    def models(self) -> list[Json]:
        """Every model of the options by name, bytes and digest; a missing file has no digest."""
        return [_model(name) for name in self.options.models]


def _without_machine(part: str) -> str:
    """A word of the command as a bundle may show it: its files by name, not where they lie here."""
    flag, equals, value = part.partition("=")
    if equals and flag.startswith("-"):
        return flag + equals + _without_machine(value)
    if part == sys.executable:
        return "python"
    return Path(part).name if os.path.isabs(part) else part


def _file(name: str) -> Path | str:
    """Where a model's file lies, or why there is none."""
    from harness.errors import ModelFileError
    from harness.models import resolve

    try:
        return resolve(name)
    except (ModelFileError, UsageError) as error:
        return str(error)


def _model(name: str) -> dict[str, Json]:
    from harness import models
    from harness.manifest import digest_file

    path = _file(name)
    if isinstance(path, str):
        return {"name": name, "bytes": None, "sha256": None, "note": path}
    sha256 = digest_file(path)
    known = models.known_by_digest(sha256)
    return {
        "name": known.name if known else path.name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
    } | ({"generated": True} if models.is_generated(path) else {})


def _process(options: EngineOptions, log_dir: Path | None) -> Launcher:
    from harness.clients import client_named
    from harness.launch.process import ProcessLauncher

    return ProcessLauncher(client_named(options.kind), log_dir)


def _attach(options: EngineOptions, log_dir: Path | None) -> Launcher:
    from harness.clients import client_named
    from harness.launch.attach import AttachLauncher
    from harness.transport import Endpoint

    return AttachLauncher(Endpoint(options.url), client_named(options.kind))


def _docker(options: EngineOptions, log_dir: Path | None) -> Launcher:
    from harness.clients import client_named
    from harness.launch.docker import DockerLauncher
    from harness.launch.docker_seal import DockerOptions

    return DockerLauncher(
        DockerOptions(options.image or DEFAULT_IMAGE, gpus=options.container_gpus),
        client_named(options.kind),
        log_dir,
    )


LAUNCHERS = {"process": _process, "attach": _attach, "docker": _docker}
