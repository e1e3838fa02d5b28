"""The docker launcher against a real Docker engine and the image of Dockerfile.gpu.

`.ci/docker up` and `.ci/docker image` make both; without a Docker engine these tests are skipped.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.errors import LaunchError
from harness.launch import LaunchSpec
from harness.launch.docker import ENGINE_COMMAND, DockerLauncher
from harness.launch.docker_daemon import connect
from harness.launch.docker_owner import OWNER
from harness.launch.docker_seal import DockerOptions, confinement
from harness.launch.process import file_sha256
from harness.observation import Exchange
from tests.default_model import DEFAULT_MODEL
from tests.integration.engine_process import WAIT_S, overload, wait_until

IMAGE = os.environ.get("HAIKUGATE_DOCKER_IMAGE", "haikugate-engine:ci")

SERVER = """
import http.server, os, signal, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status":"healthy"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self): return ""
    def log_message(self, *_): pass
class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): daemon_threads = True
class Tcp(socketserver.ThreadingMixIn, socketserver.TCPServer): daemon_threads = True
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
where = sys.argv[1]
server = Tcp(("0.0.0.0", int(where)), Handler) if where.isdigit() else Unix(where, Handler)
print("out", os.getuid(), flush=True)
print("err", file=sys.stderr, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    try:
        client = connect()
    except LaunchError as error:
        pytest.skip(f"no Docker engine (`.ci/docker up` starts one): {error}")
    try:
        if not client.images.list(name=IMAGE):
            pytest.skip(f"no image {IMAGE}: `.ci/docker image` builds it")
        yield client
    finally:
        client.close()


@pytest.fixture
def launcher(client: Any) -> Iterator[DockerLauncher]:
    launcher = DockerLauncher(DockerOptions(IMAGE))
    yield launcher
    launcher.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    path.chmod(0o644)
    return path


def script(model: Path, text: str, *args: str) -> LaunchSpec:
    return LaunchSpec(("python", "-c", text, *args), model, ready_timeout_s=WAIT_S)


def ours(client: Any) -> list[Any]:
    found: list[Any] = client.containers.list(all=True, filters={"label": OWNER})
    return found


def test_an_engine_answers_over_its_socket_and_leaves_nothing_behind(
    launcher: DockerLauncher, client: Any, model: Path
) -> None:
    engine = launcher.launch(script(model, SERVER, "{uds}"))
    try:
        facts = engine.container_facts()
        assert facts["sealed"] is True, facts["seal"]
        assert facts["image_id"] == client.images.get(IMAGE).id == launcher.image_digest
        process = engine.process_facts()
        assert process is not None
        assert "python" in psutil.Process(process["pid"]).name()
        assert process["rss_bytes"] > 1_000_000
        assert engine.client.health().status == 200
    finally:
        ended = engine.stop(WAIT_S)
    assert (ended.code, ended.timed_out, ended.oom_killed) == (0, False, False)
    assert ended.stdout.startswith("out ")
    assert ended.stdout.split()[1] not in ("0", ""), "the engine must not be root"
    assert ended.stderr == "err\n"
    assert sorted(engine.log_lines()) == ["err", ended.stdout.strip()]
    assert not engine.alive()
    assert engine.process_facts() is None
    assert not ours(client)
    assert not Path(str(engine.uds)).parent.parent.exists()


def test_a_sealed_container_reaches_nothing_and_writes_nowhere(
    launcher: DockerLauncher, model: Path
) -> None:
    probe = """
import json, os, socket
seen = {"interfaces": os.listdir("/sys/class/net"), "uid": os.getuid()}
seen["capabilities"] = [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")]
seen["new_privileges"] = [l.split()[1] for l in open("/proc/self/status") if "NoNewPrivs" in l]
for name, path in (("root", "/x"), ("model", "{model}"), ("tmp", "/tmp/x")):
    try: open(path, "a").close(); seen[name] = "written"
    except OSError as error: seen[name] = error.strerror
try: socket.create_connection(("192.0.2.1", 80), timeout=2); seen["network"] = "reached"
except OSError as error: seen["network"] = error.strerror
print(json.dumps(seen))
"""
    model.chmod(0o666)
    ended = launcher.run_to_exit(script(model, probe), timeout_s=WAIT_S)
    assert ended.code == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert seen["interfaces"] == ["lo"]
    assert seen["network"] == "Network is unreachable"
    assert seen["root"] == seen["model"] == "Read-only file system"
    assert seen["tmp"] == "written"
    assert seen["capabilities"] == ["0" * 16]
    assert seen["new_privileges"] == ["1"]
    assert seen["uid"] != 0


def test_a_container_whose_seal_does_not_hold_is_not_launched(
    launcher: DockerLauncher, client: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = confinement
    monkeypatch.setattr(
        "harness.launch.docker.confinement", lambda *asked: {**real(*asked), "cap_drop": []}
    )
    with pytest.raises(LaunchError, match="not sealed: no_capabilities"):
        launcher.launch(script(model, SERVER, "{uds}"))
    assert not ours(client)


def test_exit_code_signal_time_out_and_memory_kill_are_told_apart(
    launcher: DockerLauncher, model: Path
) -> None:
    assert launcher.run_to_exit(script(model, "raise SystemExit(7)"), WAIT_S).code == 7
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert launcher.run_to_exit(script(model, killed), WAIT_S).code == -signal.SIGSEGV
    slow = launcher.run_to_exit(script(model, "import time; time.sleep(60)"), 0.5)
    assert (slow.code, slow.timed_out, slow.oom_killed) == (-9, True, False)
    small = DockerLauncher(DockerOptions(IMAGE, memory_bytes=64 << 20))
    try:
        ended = small.run_to_exit(script(model, "bytearray(500 << 20)"), WAIT_S)
        assert (ended.code, ended.timed_out, ended.oom_killed) == (-9, False, True)
        with pytest.raises(LaunchError, match="was killed for memory: its limit is too small"):
            small.launch(script(model, "bytearray(500 << 20)", "{uds}"))
    finally:
        small.close()


def test_a_container_that_ends_early_shows_its_last_lines(
    launcher: DockerLauncher, client: Any, model: Path
) -> None:
    text = "print(*('line %d' % i for i in range(40)), sep='\\n'); raise SystemExit(3)"
    with pytest.raises(LaunchError) as raised:
        launcher.launch(script(model, text, "{uds}"))
    said = str(raised.value)
    assert "exited with code 3 before it was ready; last lines: line 20 | line 21" in said
    assert said.endswith("line 39")
    assert "line 19" not in said
    assert not ours(client)


def test_an_engine_that_never_answers_meets_its_deadline(
    launcher: DockerLauncher, client: Any, model: Path
) -> None:
    spec = LaunchSpec(
        ("python", "-c", "import time; time.sleep(60)", "{uds}"), model, ready_timeout_s=1.0
    )
    with pytest.raises(LaunchError, match=r"not ready after 1\.0 s; it printed nothing"):
        launcher.launch(spec)
    assert not ours(client)


def test_missing_things_are_one_line(launcher: DockerLauncher, client: Any, model: Path) -> None:
    with pytest.raises(LaunchError, match=r"exited with code 127.*No such file"):
        launcher.launch(LaunchSpec(("no-such-command", "{uds}"), model))
    for options, wanted in (
        (DockerOptions("haikugate.invalid/no/such:image"), "cannot be pulled"),
        (DockerOptions(IMAGE, gpus=("99",)), "GPU|Container Toolkit"),
    ):
        other = DockerLauncher(options)
        try:
            with pytest.raises(LaunchError, match=wanted) as raised:
                other.launch(LaunchSpec(("python", "{uds}"), model))
            assert "\n" not in str(raised.value)
        finally:
            other.close()
    assert not ours(client)


def test_without_the_seal_the_port_is_published_on_loopback(client: Any, model: Path) -> None:
    launcher = DockerLauncher(DockerOptions(IMAGE, sealed=False))
    try:
        engine = launcher.launch(script(model, SERVER, "{port}"))
        try:
            facts = engine.container_facts()
            assert facts["sealed"] is False
            assert facts["seal"]["no_network"] is False
            assert engine.base_url.startswith("http://127.0.0.1:")
            assert engine.client.health().status == 200
        finally:
            engine.stop()
    finally:
        launcher.close()


def test_a_lost_port_is_replaced_by_another(
    client: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        free = _free_port()
        monkeypatch.setattr("harness.launch.docker.free_port", lambda: next(ports, free))
        launcher = DockerLauncher(DockerOptions(IMAGE, sealed=False))
        try:
            engine = launcher.launch(script(model, SERVER, "{port}"))
            engine.stop()
        finally:
            launcher.close()
    assert engine.base_url == f"http://127.0.0.1:{free}"


def test_a_killed_harness_leaves_an_orphan_that_the_next_run_removes(
    client: Any, model: Path
) -> None:
    code = f"""
import time
from pathlib import Path
from harness.launch import LaunchSpec
from harness.launch.docker import DockerLauncher
from harness.launch.docker_seal import DockerOptions
spec = LaunchSpec(("python", "-c", {SERVER!r}, "{{uds}}"), Path({str(model)!r}))
engine = DockerLauncher(DockerOptions({IMAGE!r})).launch(spec)
print(engine.uds, flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout as said:
        uds = Path(said.readline().strip())
    assert uds.exists()
    child.kill()
    child.wait()
    assert len(ours(client)) == 1
    launcher = DockerLauncher(DockerOptions(IMAGE))
    try:
        launcher.run_to_exit(script(model, "pass"), WAIT_S)
    finally:
        launcher.close()
    assert not ours(client)
    assert not uds.parent.parent.exists()


def test_the_image_is_what_its_definition_says(client: Any) -> None:
    image = client.images.get(IMAGE)
    config = image.attrs["Config"]
    assert config["Entrypoint"] == ["haikugate-engine", "serve"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][-1] == "harness.launch.docker_health"
    assert image.labels["org.opencontainers.image.title"] == "haikugate-engine"
    assert image.attrs["Size"] < 1 << 30, "the CPU image stays below 1 GiB"


@pytest.fixture(scope="module")
def real_model() -> Path:
    return DEFAULT_MODEL


def test_the_reference_engine_generates_in_a_sealed_container(
    launcher: DockerLauncher, real_model: Path
) -> None:
    engine = launcher.launch(LaunchSpec(ENGINE_COMMAND, real_model, ready_timeout_s=WAIT_S))
    try:
        assert engine.container_facts()["sealed"] is True
        wait_until(lambda: json.loads(engine.client.health().body)["model_sha256"])
        health = json.loads(engine.client.health().body)
        assert health["status"] == "healthy"
        assert health["model_sha256"] == engine.model_sha256
        opened = [Path(path) for path in (engine.process_facts() or {})["open_files"]]
        models = {file_sha256(path) for path in opened if path.suffix == ".gguf"}
        assert models == {engine.model_sha256}
        first, again = (executed(engine.client.execute) for _ in range(2))
        assert first == again
        assert len(first) == 8
        ended = engine.stop(5.0 * overload())
        assert (ended.code, ended.timed_out) == (0, False)
    finally:
        engine.stop()


def executed(execute: Any) -> list[int]:
    seen: Exchange = execute(prompt="Once upon a time", max_tokens=8, temperature=0.0, seed=1)
    assert seen.status == 200
    lines = seen.body.decode().splitlines()
    tokens = [json.loads(line[5:]) for line in lines if line.startswith("data:") and '"id"' in line]
    return [token["id"] for token in tokens]


def test_a_model_that_is_not_there_ends_the_engine_with_code_1(
    launcher: DockerLauncher, tmp_path: Path
) -> None:
    ended = launcher.run_to_exit(LaunchSpec(ENGINE_COMMAND, tmp_path / "absent.gguf"), WAIT_S)
    assert ended.code == 1
    assert "absent.gguf" in ended.stdout + ended.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
