"""`haikugate doctor`: what this machine can certify, and why not more."""

import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import HaikugateError

M0_BYTES = 24_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and what to do where it is missing."""

    what: str
    holds: bool
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at the machine; every finding stands by itself."""
    return [look() for look in _LOOKS]


def certifiable(findings: list[Finding]) -> dict[str, str]:
    """For each profile the empty string, or the things that are missing."""
    missing = {finding.what for finding in findings if not finding.holds}
    return {
        profile: ", ".join(sorted(missing & needs)) for profile, needs in _PROFILE_NEEDS.items()
    }


def doctor() -> None:
    """Say what this machine can certify, and why not more."""
    findings = examine()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "to get it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        sign = Text("yes", style="green") if finding.holds else Text("no", style="yellow")
        remedy = "" if finding.holds else finding.remedy
        table.add_row(sign, finding.what, Text(finding.found), Text(remedy))
    console = Console()
    console.print(table)
    for profile, missing in certifiable(findings).items():
        said = (
            f"cannot be certified here, missing: {missing}" if missing else "can be certified here"
        )
        console.print(Text(f"profile {profile}: {said}"), soft_wrap=True)


def _python() -> Finding:
    version = sys.version.split()[0]
    return Finding("Python 3.11", sys.version_info >= (3, 11), version, "install Python 3.11")


def _engine() -> Finding:
    missing = [name for name in ("numba", "starlette", "tokenizers") if not _has(name)]
    found = f"missing {', '.join(missing)}" if missing else "installed"
    return Finding("reference engine", not missing, found, "pip install 'haikugate[engine]'")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _model() -> Finding:
    from harness import models

    name = models.DEFAULT_MODEL
    remedy = f"haikugate models fetch {name}"
    try:
        return Finding("default model", True, models.resolve(name).name)
    except HaikugateError:
        return Finding("default model", False, "not in the cache", remedy)


def _reference_models() -> Finding:
    from harness import models

    wanted = [model for model in models.registry().values() if "m0" in model.profiles]
    missing = [model.name for model in wanted if not model.path.is_file()]
    found = f"missing {', '.join(missing)}" if missing else "all three"
    return Finding("reference weights", not missing, found, "haikugate models fetch NAME")


def _gpus() -> list[dict[str, int | str | None]]:
    from harness.environment import gpu_facts

    gpus: list[dict[str, int | str | None]] = gpu_facts()["gpus"]
    return gpus


def _gpu() -> Finding:
    names = [str(gpu["name"]) for gpu in _gpus()]
    remedy = "an NVIDIA GPU, its driver, and pip install 'haikugate[cuda13]'"
    return Finding("CUDA GPU", bool(names), ", ".join(names) or "none visible", remedy)


def _large_gpu() -> Finding:
    largest = max((int(gpu["memory_bytes"] or 0) for gpu in _gpus()), default=0)
    remedy = "profile m0 needs 24 GB of device memory"
    return Finding("24 GB GPU", largest >= M0_BYTES, f"{largest / 1e9:.0f} GB at most", remedy)


def _docker() -> Finding:
    from harness.launch.docker_daemon import connect, explained

    try:
        with closing(connect()) as client, explained("docker"):
            return Finding("Docker engine", True, f"Docker {client.version()['Version']}")
    except HaikugateError as error:
        said = re.sub(r"^docker: (unix://\S+: )?| \(\[Errno.*$", "", str(error))
        found, _, remedy = said.partition(": ")
        return Finding("Docker engine", False, found, remedy)


_LOOKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _engine,
    _model,
    _reference_models,
    _gpu,
    _large_gpu,
    _docker,
)
_CPU = {"Python 3.11", "reference engine", "default model"}
_PROFILE_NEEDS = {
    "cpu": _CPU,
    "gpu": _CPU | {"CUDA GPU"},
    "m0": _CPU | {"CUDA GPU", "24 GB GPU", "reference weights"},
}
