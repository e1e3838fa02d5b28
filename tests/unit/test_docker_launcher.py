"""The docker launcher without Docker: what is asked of it, what refusals mean, what is shared."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any

import docker.errors
import pytest

from harness.errors import LaunchError
from harness.launch import LaunchSpec, docker_health
from harness.launch.docker import ENGINE_COMMAND, SOURCE_LABEL, DockerLauncher
from harness.launch.docker_container import ContainerState
from harness.launch.docker_daemon import PortTakenError, connect, explained, meaning
from harness.launch.docker_files import SharedFiles, User
from harness.launch.docker_image import find_or_pull
from harness.launch.docker_owner import DIRECTORY, OWNER, Owner, remove_orphans
from harness.launch.docker_seal import (
    DockerOptions,
    confinement,
    device_requests,
    guest_user,
    image_user,
    memory_limit,
    seal,
)

SEALED: dict[str, Any] = {
    "HostConfig": {
        "NetworkMode": "none",
        "PortBindings": {},
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": None,
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": False,
        "PidMode": "",
        "IpcMode": "private",
        "Devices": None,
        "PidsLimit": 512,
        "Memory": 1 << 32,
    },
    "Config": {"User": "10001:10001"},
    "NetworkSettings": {"Networks": {"none": {}}},
    "Mounts": [
        {"Destination": "/models/m.gguf", "RW": False},
        {"Destination": "/run/haikugate", "RW": True},
    ],
}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("PermissionError(13, 'Permission denied')", "no permission on the Docker engine's socket"),
        ("Connection aborted.', FileNotFoundError(2, 'No such file or directory')", "not run here"),
        ('could not select device driver "" with capabilities: [[gpu]]', "Container Toolkit"),
        ("Bind for 127.0.0.1:80 failed: port is already allocated", "the port is taken"),
        ('exec: "nope": executable file not found in $PATH', "does not have the command"),
        ("write /x: no space left on device", "disk of the Docker engine is full"),
        ("something else", "something else"),
    ],
)
def test_a_refusal_says_what_to_do_in_one_line(said: str, wanted: str) -> None:
    with pytest.raises(LaunchError) as raised, explained("docker: here"):
        raise docker.errors.DockerException(said)
    assert str(raised.value).startswith("docker: here: ")
    assert wanted in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_taken_port_is_worth_another_try() -> None:
    with pytest.raises(PortTakenError), explained("docker"):
        raise docker.errors.DockerException("listen tcp 127.0.0.1:1: address already in use")


def test_no_docker_engine_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(LaunchError, match="does not run here: start it"):
        connect()


def test_a_docker_engine_on_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(LaunchError, match="needs the Docker engine of this machine"):
        connect()


def test_a_long_refusal_is_shortened() -> None:
    assert len(meaning("x" * 5000)) <= 600


def test_a_sealed_container_is_asked_for_by_default() -> None:
    asked = confinement(DockerOptions("image"), 1 << 30)
    assert asked["network_mode"] == "none"
    assert asked["read_only"] is True
    assert asked["cap_drop"] == ["ALL"]
    assert asked["security_opt"] == ["no-new-privileges:true"]
    assert asked["pids_limit"] > 0
    assert asked["mem_limit"] == asked["memswap_limit"] == 1 << 30
    assert list(asked["tmpfs"]) == ["/tmp"]
    assert confinement(DockerOptions("image", sealed=False), 1)["network_mode"] == "bridge"


def test_the_seal_is_read_from_what_docker_reports() -> None:
    assert seal(SEALED)["sealed"] is True


@pytest.mark.parametrize(
    ("section", "field", "value", "broken"),
    [
        ("HostConfig", "NetworkMode", "bridge", "no_network"),
        ("NetworkSettings", "Networks", {"none": {}, "lan": {}}, "no_network"),
        ("HostConfig", "PortBindings", {"80/tcp": []}, "no_published_port"),
        ("HostConfig", "ReadonlyRootfs", False, "read_only_root"),
        ("HostConfig", "CapDrop", [], "no_capabilities"),
        ("HostConfig", "CapAdd", ["NET_ADMIN"], "no_capabilities"),
        ("HostConfig", "SecurityOpt", None, "no_new_privileges"),
        ("HostConfig", "SecurityOpt", ["no-new-privileges:false"], "no_new_privileges"),
        ("HostConfig", "Privileged", True, "not_privileged"),
        ("HostConfig", "PidMode", "host", "no_host_namespace"),
        ("HostConfig", "Devices", [{"PathOnHost": "/dev/kvm"}], "no_host_device"),
        ("HostConfig", "PidsLimit", 0, "pids_limited"),
        ("HostConfig", "Memory", 0, "memory_limited"),
        ("Config", "User", "", "user_named"),
    ],
)
def test_one_property_missing_breaks_the_seal(
    section: str, field: str, value: Any, broken: str
) -> None:
    report = seal({**SEALED, section: {**SEALED[section], field: value}})
    assert report["sealed"] is False
    assert [name for name, holds in report["seal"].items() if not holds] == [broken]


def test_a_writable_mount_breaks_the_seal() -> None:
    mounts = [*SEALED["Mounts"], {"Destination": "/models/other", "RW": True}]
    assert seal({**SEALED, "Mounts": mounts})["sealed"] is False


def test_gpus_are_none_all_or_chosen() -> None:
    assert device_requests(None) == []
    assert device_requests(())[0]["Count"] == -1
    assert device_requests(("1", "GPU-abc"))[0]["DeviceIDs"] == ["1", "GPU-abc"]
    assert device_requests(())[0]["Capabilities"] == [["gpu"]]


def test_the_memory_limit_follows_the_model() -> None:
    assert memory_limit(DockerOptions("i"), 0) == 4 << 30
    assert memory_limit(DockerOptions("i"), 10 << 30) == 30 << 30
    assert memory_limit(DockerOptions("i", memory_bytes=5), 10 << 30) == 5


def test_the_guest_is_never_root_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert guest_user([]) == (User(10001, 10001), "10001:10001")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    assert guest_user(["name=seccomp"]) == (User(1000, 100), "1000:100")
    assert guest_user(["name=seccomp", "name=rootless"]) == (User(1000, 100), "0:0")


def test_an_images_user_is_a_number_or_unknown() -> None:
    assert image_user("") == image_user("root") == image_user("0:0") == User(0, 0)
    assert image_user("12:13") == User(12, 13)
    assert image_user("12") == User(12, -1)
    assert image_user("app") == User(-1, -1)


@pytest.fixture
def files() -> Iterator[SharedFiles]:
    made = SharedFiles.make(User(10001, 10001) if os.geteuid() == 0 else User(os.geteuid(), 0))
    yield made
    made.remove()


def test_only_the_socket_directory_is_writable(files: SharedFiles, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    model.chmod(0o644)
    assert files.model(model) == "/models/model.gguf"
    assert [mount["Target"] for mount in files.mounts if not mount["ReadOnly"]] == [
        "/run/haikugate"
    ]
    assert files.root.stat().st_mode & 0o77 == 0
    assert Path(files.uds).parent.stat().st_uid == files.user.uid


def test_a_missing_model_is_left_to_the_engine(files: SharedFiles, tmp_path: Path) -> None:
    assert files.model(tmp_path / "absent.gguf") == "/models/absent.gguf"
    assert len(files.mounts) == 1


def test_files_that_arguments_name_are_shared(files: SharedFiles, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    absent = str(tmp_path / "absent")
    args = files.arguments(["--api-key-file", str(key), f"--other={key}", absent, "--n", "5"])
    assert args[1].startswith("/inputs/")
    assert args[2].startswith("--other=/inputs/")
    assert args[3:] == [absent, "--n", "5"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the container's user is another one")
def test_a_private_file_is_copied_if_small_and_refused_if_large(
    files: SharedFiles, tmp_path: Path
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for path, size in ((small, 10), (large, 2 << 20)):
        path.write_bytes(b"x" * size)
        path.chmod(0o600)
    files.arguments([str(small)])
    copy = Path(files.mounts[-1]["Source"])
    assert copy.parent == files.root
    assert copy.stat().st_uid == files.user.uid
    with pytest.raises(LaunchError, match="chmod a\\+r"):
        files.model(large)


def test_the_socket_path_fits_whatever_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(deep))
    made = SharedFiles.make(User(os.geteuid(), os.getegid()))
    try:
        assert len(made.uds.encode()) < 108
    finally:
        made.remove()


class FakeContainer:
    short_id = "abc"
    id = "abcdef"

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.removed = False

    def remove(self, *, force: bool, v: bool) -> None:
        self.removed = force and v


class FakeDocker:
    """The part of a docker client that is asked here."""

    def __init__(self, found: list[FakeContainer], stream: list[dict[str, Any]]) -> None:
        self.containers = self.images = self.api = self
        self._found, self._stream, self.pulled = found, stream, False

    def list(self, **_: Any) -> Any:
        return self._found

    def get(self, name: str) -> Any:
        if not self.pulled:
            raise docker.errors.ImageNotFound(name)
        attrs = {"Config": {"User": "7"}, "RepoDigests": ["repo@sha256:00"]}
        return type("Found", (), {"id": "sha256:11", "labels": {"a": "b"}, "attrs": attrs})

    def pull(self, repository: str, tag: str, **_: Any) -> Any:
        self.pulled = True
        return self._stream


def test_containers_of_killed_runs_are_removed_and_others_are_not(tmp_path: Path) -> None:
    directory = tmp_path / "haikugate-old"
    directory.mkdir()
    mine = Owner.current()
    killed = Owner(mine.boot, mine.namespace, mine.pid, "1.00")
    elsewhere = Owner(mine.boot, "pid:[1]", 4_000_000, "1.00")
    earlier_boot = Owner("another", mine.namespace, mine.pid, mine.create_time)
    orphan = FakeContainer({OWNER: killed.label(), DIRECTORY: str(directory)})
    rebooted = FakeContainer({OWNER: earlier_boot.label(), DIRECTORY: str(tmp_path)})
    others = [FakeContainer({OWNER: label}) for label in (mine.label(), elsewhere.label(), "odd")]
    removed = remove_orphans(FakeDocker([orphan, rebooted, *others], []))
    assert len(removed) == 2
    assert orphan.removed
    assert rebooted.removed
    assert not any(container.removed for container in others)
    assert not directory.exists()
    assert tmp_path.exists(), "a directory that is not ours by name stays"


def test_a_missing_image_is_pulled_with_progress() -> None:
    stream = [
        {"status": "Pulling from library"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 5, "total": 10}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 1, "total": 4}},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": 10}},
    ]
    seen: list[tuple[int, int]] = []
    image = find_or_pull(FakeDocker([], stream), "repo:1", lambda *n: seen.append(n))
    assert seen == [(5, 10), (6, 14), (11, 14)]
    assert (image.id, image.user, image.repo_digests) == ("sha256:11", "7", ("repo@sha256:00",))


def test_an_image_that_cannot_be_pulled_is_one_line() -> None:
    with pytest.raises(LaunchError, match="cannot be pulled: manifest unknown; build it"):
        find_or_pull(FakeDocker([], [{"error": "manifest unknown"}]), "repo:1")


def test_a_sealed_command_must_listen_on_the_socket(tmp_path: Path) -> None:
    launcher = DockerLauncher(DockerOptions("image"))
    with pytest.raises(LaunchError, match="no network, so its command must"):
        launcher.launch(LaunchSpec(("serve", "--port", "{port}"), tmp_path))
    unsealed = DockerLauncher(DockerOptions("image", sealed=False))
    with pytest.raises(LaunchError, match="must name where it listens"):
        unsealed.launch(LaunchSpec(("serve",), tmp_path))


def test_the_projects_image_brings_its_command() -> None:
    assert "{uds}" in ENGINE_COMMAND
    dockerfile = (Path(__file__).parent.parent.parent / "Dockerfile.gpu").read_text()
    assert SOURCE_LABEL in dockerfile


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"Running": True}, None),
        ({"Running": False, "ExitCode": 3}, 3),
        ({"Running": False, "ExitCode": 137, "OOMKilled": True}, -9),
        ({"Running": False, "ExitCode": 255}, 255),
    ],
)
def test_the_exit_code_and_the_memory_kill_are_told_apart(
    state: dict[str, Any], code: int | None
) -> None:
    seen = ContainerState.of({"State": state})
    assert seen.code == code
    assert seen.oom_killed is bool(state.get("OOMKilled"))


class Health(BaseHTTPRequestHandler):
    status = "healthy"

    def do_GET(self) -> None:
        body = f'{{"status":"{self.status}"}}'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "uds"

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("status", "code"), [("healthy", 0), ("unhealthy", 1)])
def test_the_health_check_asks_where_the_engine_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    monkeypatch.setattr(Health, "status", status)
    monkeypatch.setattr(docker_health, "TIMEOUT_S", 120.0)
    path = tmp_path / "e.sock"
    line = tmp_path / "cmdline"
    line.write_bytes(b"/sbin/docker-init\0--\0haikugate-engine\0serve\0--uds\0%b\0" % bytes(path))
    with UnixStreamServer(str(path), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert docker_health.main(line) == code
        server.shutdown()
        thread.join()
    assert docker_health.main(line) == 1, "nobody listens any more"


def test_the_health_check_uses_the_port_too() -> None:
    asked = docker_health.connection(["serve", "--host", "0.0.0.0", "--port=81"], 1.0)
    assert (asked.host, asked.port) == ("127.0.0.1", 81)
    assert docker_health.connection(["serve"], 1.0).port == 8080
    assert docker_health.option(["--port"], "--port") is None
