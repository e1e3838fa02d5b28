"""The machine and the software a run was made on; nothing of its user."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import psutil

from harness.observation import Json
from harness.pseudonyms import bare_release, pseudonym

CONTAINER_MARKS = {Path("/.dockerenv"): "docker", Path("/run/.containerenv"): "podman"}


def environment_snapshot() -> dict[str, Json]:
    """OS, CPU, RAM, Python, packages, GPUs, container and source revision, as JSON.

    Holds no user name, host name, home path or environment variable; a GPU is a pseudonym.
    """
    gpus = gpu_facts()
    return {
        "os": f"{platform.system()} {bare_release(platform.release())}",
        "os_name": _os_name(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_cores_physical": psutil.cpu_count(logical=False),
        "cpu_cores_logical": psutil.cpu_count(),
        "cpu_cores_usable": usable_cores(),
        "ram_bytes": psutil.virtual_memory().total,
        "python_version": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "packages": installed_packages(),
        "gpu_names": [gpu["name"] for gpu in gpus["gpus"]],
        "gpus": gpus["gpus"],
        "driver": gpus["driver"],
        "cuda_version": gpus["cuda_version"],
        "gpu_note": gpus["note"],
        "container": container_runtime(),
        "source": source_revision(Path(__file__).resolve().parent.parent),
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.platform(terse=True)


@functools.cache
def cpu_name() -> str:
    """The processor's marketing name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def container_runtime() -> str | None:
    """The container runtime this process runs in, if it shows."""
    for mark, runtime in CONTAINER_MARKS.items():
        if mark.exists():
            return runtime
    return os.environ.get("container") or None  # noqa: SIM112 - podman and systemd write it so


def gpu_facts() -> dict[str, Any]:
    """GPUs as NVML tells them; without NVML an empty list and the reason in `note`."""
    nothing: dict[str, Any] = {"gpus": [], "driver": None, "cuda_version": None}
    try:
        import pynvml
    except ImportError:
        return {**nothing, "note": "NVML is not installed"}
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return {**nothing, "note": f"no GPU driver: {error}"}
    try:
        return {**_nvml_facts(nvml), "note": None}
    finally:
        nvml.nvmlShutdown()


def _nvml_facts(nvml: Any) -> dict[str, Any]:
    version = int(nvml.nvmlSystemGetCudaDriverVersion())
    return {
        "gpus": [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())],
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "cuda_version": f"{version // 1000}.{version % 1000 // 10}",
    }


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    readings: dict[str, Callable[[], Any]] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "uuid": lambda: pseudonym(_text(nvml.nvmlDeviceGetUUID(handle))),
        "memory_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "compute_capability": lambda: ".".join(
            str(part) for part in nvml.nvmlDeviceGetCudaComputeCapability(handle)
        ),
        "max_sm_clock_mhz": lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
    }
    facts: dict[str, Any] = {"index": index}
    for name, read in readings.items():
        try:
            facts[name] = read()
        except nvml.NVMLError:
            facts[name] = None
    return facts


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def source_revision(root: Path) -> dict[str, Json]:
    """The git commit that the installation is a checkout of, and whether it was changed since."""
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def harness_version() -> str:
    """The installed distribution's version."""
    return version("haikugate")
