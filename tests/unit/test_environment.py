"""The environment record names hardware and software, and nothing of the user."""

import getpass
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from harness import environment
from harness.environment import environment_snapshot, gpu_facts, source_revision
from harness.installation import installation, package_files, tree_digest
from harness.strict_json import dumps_file


def test_the_snapshot_names_this_machine() -> None:
    snapshot = environment_snapshot()
    assert snapshot["python_version"] == platform.python_version()
    assert snapshot["ram_bytes"] == psutil.virtual_memory().total
    assert snapshot["packages"]["pytest"] == version("pytest")
    assert 1 <= snapshot["cpu_cores_usable"] <= snapshot["cpu_cores_logical"]
    assert snapshot["gpu_names"] == [gpu["name"] for gpu in snapshot["gpus"]]


def test_the_snapshot_holds_nothing_of_the_user(monkeypatch) -> None:
    monkeypatch.setenv("HAIKUGATE_CANARY", "canary-7f3a")
    written = dumps_file(environment_snapshot()).decode()
    assert "canary-7f3a" not in written
    assert f'"{socket.gethostname()}"' not in written
    assert str(Path.home()) + "/" not in written
    assert f'"{getpass.getuser()}"' not in written


class FakeNvml:
    """Two GPUs, the second of which tells little."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __getattr__(self, name: str):
        if name.startswith("nvmlDeviceGet"):
            return lambda *_: self._read(name, *_)
        return lambda: None

    def _read(self, name: str, handle: int = 0, *_: int):
        if name == "nvmlDeviceGetCount":
            return 2
        if name == "nvmlDeviceGetHandleByIndex":
            return handle
        if handle == 1 and name != "nvmlDeviceGetName":
            raise self.NVMLError("not supported")
        return {
            "nvmlDeviceGetName": b"NVIDIA Test",
            "nvmlDeviceGetUUID": "GPU-1234",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 << 30),
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        }[name]

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13010

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.1"


def test_gpus_are_read_and_what_they_do_not_tell_is_null(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", FakeNvml())
    facts = gpu_facts()
    assert (facts["driver"], facts["cuda_version"], facts["note"]) == ("580.1", "13.1", None)
    first, second = facts["gpus"]
    assert first["memory_bytes"] == 24 << 30
    assert (first["compute_capability"], first["power_limit_w"]) == ("9.0", 700.0)
    assert (second["name"], second["uuid"], second["memory_bytes"]) == ("NVIDIA Test", None, None)


def test_without_nvml_the_reason_is_given(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert gpu_facts()["note"] == "NVML is not installed"


def test_a_checkout_has_its_commit_and_whether_it_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert source_revision(tmp_path) == {"commit": None, "dirty": None}
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert source_revision(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert source_revision(tmp_path)["dirty"] is True


@pytest.mark.parametrize("runtime", ["docker", None])
def test_the_container_shows(tmp_path: Path, monkeypatch, runtime: str | None) -> None:
    mark = tmp_path / "mark"
    if runtime:
        mark.touch()
    monkeypatch.delenv("container", raising=False)
    monkeypatch.setattr(environment, "CONTAINER_MARKS", {mark: "docker"})
    assert environment.container_runtime() == runtime


def test_the_installation_lists_every_source_file() -> None:
    files = package_files("harness")
    assert "harness/installation.py" in files
    assert "harness/models.toml" in files
    assert "harness/templates/report.css" in files
    assert not [path for path in files if path.endswith(".pyc")]
    assert installation()["version"] == version("haikugate")


def test_one_changed_file_changes_the_tree_digest() -> None:
    files = {"a": "1" * 64, "b": "2" * 64}
    assert tree_digest(files) == tree_digest(dict(reversed(files.items())))
    assert tree_digest(files) != tree_digest({**files, "b": "3" * 64})
