"""Launching: readiness, deadlines, groups that die, ports that get lost, logs that stay bounded."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

import harness.launch.process as process_module
from harness.clients.native import NativeClient
from harness.errors import LaunchError
from harness.launch import Launcher, LaunchSpec, RunningEngine
from harness.launch.attach import AttachLauncher
from harness.launch.logs import MAX_LINE_BYTES, MAX_LINES, lines_after
from harness.launch.process import ProcessLauncher, file_sha256
from harness.transport import Endpoint
from tests.unit.open_files import open_files

CANNED = str(Path(__file__).parent.parent / "canned_engine.py")
WAIT_S = 120.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model.gguf"
    path.write_bytes(b"weights")
    return path


def spec(model: Path, misbehave: str = "", timeout_s: float = WAIT_S) -> LaunchSpec:
    return LaunchSpec(
        command=(sys.executable, CANNED, "--port", "{port}", "--model", "{model}"),
        model_path=model,
        args=("--misbehave", misbehave),
        ready_timeout_s=timeout_s,
    )


@pytest.mark.parametrize(
    ("args", "kept"),
    [
        ((), "run -m x serve --model {model} --port {port} --device cpu"),
        (("--port", "7"), "run -m x serve --model {model} --device cpu"),
        (("--port=7",), "run -m x serve --model {model} --device cpu"),
        (("--device", "tpu", "--model", "m"), "run -m x serve --port {port}"),
        (("--new", "1"), "run -m x serve --model {model} --port {port} --device cpu"),
    ],
)
def test_an_argument_takes_the_place_of_the_commands(args: tuple[str, ...], kept: str) -> None:
    command = "run -m x serve --model {model} --port {port} --device cpu"
    for form in (command, command.replace("--device ", "--device=")):
        spec = LaunchSpec(tuple(form.split()), Path("m"), args)
        assert " ".join(spec.kept_command).replace("--device=", "--device ") == kept


def gone(pid: int) -> bool:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def printed(engine: RunningEngine, awaited: str) -> str:
    """The line with this, which comes through a thread of its own and may be later than answers."""
    return next(line for line in lines_after(engine, awaited, WAIT_S) if awaited in line)


def test_a_launched_engine_answers_and_stops(model: Path, tmp_path: Path) -> None:
    launcher: Launcher = ProcessLauncher(log_dir=tmp_path)
    engine: RunningEngine = launcher.launch(spec(model))
    try:
        assert engine.alive()
        assert not engine.stopped
        assert json.loads(engine.client.health().body)["model"] == "a model.gguf"
        facts = engine.process_facts()
        assert facts is not None
        assert facts["rss_bytes"] > 1_000_000
        assert facts["threads"] >= 1
        assert facts["listening"] == [engine.base_url.removeprefix("http://")]
        assert any("python" in path for path in facts["maps"])
        assert engine.model_sha256 == sha256(b"weights").hexdigest()
        assert printed(engine, '"ready"')
    finally:
        ended = engine.stop(WAIT_S)
    assert ended.code == -signal.SIGTERM
    assert not ended.timed_out
    assert engine.stopped
    assert gone(facts["pid"])
    assert engine.process_facts() is None
    assert engine.stop() is ended
    assert '"ready"' in ended.stdout
    assert '"ready"' in next(tmp_path.glob("engine-*.log")).read_text()


def test_it_runs_in_its_own_session_and_learns_nothing_of_the_test(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAIKUGATE_SIGNING_KEY", "key")
    engine = ProcessLauncher().launch(spec(model))
    try:
        env = json.loads(printed(engine, '"ready"'))["env"]
        assert not [name for name in env if name.startswith(("HAIKUGATE_", "PYTEST_"))]
        assert os.getsid(engine.pid) == engine.pid != os.getsid(0)
    finally:
        engine.stop()


def test_children_die_with_the_engine(model: Path) -> None:
    engine = ProcessLauncher().launch(spec(model, "child"))
    child = int(printed(engine, "child ").split()[1])
    assert psutil.pid_exists(child)
    engine.stop()
    assert gone(child)


def test_an_engine_deaf_to_sigterm_is_killed(model: Path) -> None:
    engine = ProcessLauncher().launch(spec(model, "deaf"))
    ended = engine.stop(timeout_s=0.3)
    assert (ended.code, ended.timed_out) == (-signal.SIGKILL, True)


def test_an_early_exit_is_told_with_its_last_lines(model: Path) -> None:
    with pytest.raises(LaunchError, match=r"exited with code 1 .*5 bytes required, 4 bytes"):
        ProcessLauncher().launch(spec(model, "exit"))


def test_an_engine_that_never_gets_ready_meets_the_deadline(model: Path) -> None:
    started = time.monotonic()
    with pytest.raises(LaunchError, match=r"not ready after 0\.5 s"):
        ProcessLauncher().launch(spec(model, "hang", timeout_s=0.5))
    assert time.monotonic() - started < WAIT_S


def test_a_missing_program_is_one_line(model: Path) -> None:
    with pytest.raises(LaunchError, match="cannot start") as caught:
        ProcessLauncher().launch(LaunchSpec(("/no/such/engine",), model))
    assert "\n" not in str(caught.value)


def test_a_port_lost_to_another_process_is_tried_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        ports = iter([squatter.getsockname()[1]])
        really_free = process_module.free_port
        monkeypatch.setattr(process_module, "free_port", lambda: next(ports, None) or really_free())
        engine = ProcessLauncher().launch(spec(model))
        try:
            assert engine.port != squatter.getsockname()[1]
        finally:
            engine.stop()


def test_an_impostor_on_the_port_is_not_taken_for_the_engine(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = ProcessLauncher().launch(spec(model))
    try:
        monkeypatch.setattr(process_module, "free_port", lambda: impostor.port)
        with pytest.raises(LaunchError, match="answered by another process"):
            ProcessLauncher().launch(spec(model, "hang"))
    finally:
        impostor.stop()


def test_logs_are_bounded(model: Path) -> None:
    engine = ProcessLauncher().launch(spec(model, "chatty"))
    engine.stop()
    lines = engine.log_lines()
    assert len(lines) == MAX_LINES
    assert max(map(len, lines)) <= MAX_LINE_BYTES


def test_run_to_exit_gives_code_and_output(model: Path) -> None:
    code = "import sys; print(sys.argv[1]); print('no', file=sys.stderr); sys.exit(3)"
    run = LaunchSpec((sys.executable, "-c", code, "{model}"), model)
    facts = ProcessLauncher().run_to_exit(run, WAIT_S)
    assert (facts.code, facts.timed_out) == (3, False)
    assert facts.stdout == f"{model}\n"
    assert facts.stderr == "no\n"


def test_run_to_exit_kills_what_does_not_end(model: Path) -> None:
    facts = ProcessLauncher().run_to_exit(spec(model, "hang"), 0.5)
    assert (facts.code, facts.timed_out) == (-signal.SIGKILL, True)
    assert facts.pid is not None
    assert gone(facts.pid)


def test_attach_reaches_a_running_engine_and_leaves_it_alone(model: Path) -> None:
    running = ProcessLauncher().launch(spec(model))
    try:
        launcher: Launcher = AttachLauncher(Endpoint(running.base_url))
        engine: RunningEngine = launcher.launch(LaunchSpec((), model))
        assert engine.alive()
        assert engine.process_facts() is None
        assert engine.stop().code is None
        assert running.alive()
        with pytest.raises(LaunchError, match="cannot be run"):
            launcher.run_to_exit(LaunchSpec(("x",), model), 1.0)
        with pytest.raises(LaunchError, match="cannot be sent"):
            engine.signal(15)
    finally:
        running.stop()


def test_attach_to_nobody_is_one_line(model: Path) -> None:
    launcher = AttachLauncher(Endpoint("http://127.0.0.1:9"))
    with pytest.raises(LaunchError, match=r"no answer within 0\.2 s"):
        launcher.launch(LaunchSpec((), model, ready_timeout_s=0.2))


def test_the_model_digest_follows_the_file(model: Path) -> None:
    before = file_sha256(model)
    model.write_bytes(b"other weights")
    assert file_sha256(model) != before


HARNESS = """
import sys, threading, time
from pathlib import Path
from harness.launch import LaunchSpec
from harness.launch.logs import lines_after
from harness.launch.process import ProcessLauncher

command = (*sys.argv[1:], "--port", "{port}", "--misbehave", "child")
spec = LaunchSpec(command, Path(sys.argv[2]))
engines = []
starter = threading.Thread(target=lambda: engines.append(ProcessLauncher().launch(spec)))
starter.start()
starter.join()
lines = lines_after(engines[0], "child ", 120.0)
child = next(x for x in lines if x.startswith("child ")).split()[1]
time.sleep(0.3)
print(engines[0].pid, child, engines[0].alive(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_and_its_children_die_with_the_harness(model: Path, number: int) -> None:
    """Launched from a thread that has ended: only the harness's own end may end the engine."""
    command = (sys.executable, "-c", HARNESS, sys.executable, CANNED, "--model", str(model))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        engine, child, alive = harness.stdout.readline().split()
        assert alive == "True"
        harness.send_signal(number)
    assert gone(int(engine))
    assert gone(int(child))


def test_a_stopped_engine_leaves_no_guardian(model: Path) -> None:
    engine = ProcessLauncher().launch(spec(model))
    guardian = engine._guardian.pid
    assert psutil.pid_exists(guardian)
    engine.stop()
    assert not psutil.pid_exists(guardian)


@pytest.mark.filterwarnings("error")
def test_nothing_stays_open_after_a_launch_that_fails(model: Path, tmp_path: Path) -> None:
    before = open_files()
    for command in (("/no/such/engine", "{uds}"), (sys.executable, "-c", "exit(3)", "{uds}")):
        with pytest.raises(LaunchError):
            ProcessLauncher(log_dir=tmp_path).launch(LaunchSpec(command, model))
    gc.collect()
    assert open_files() <= before


def test_a_reference_needs_a_key_that_only_this_user_can_read(model: Path) -> None:
    code = (
        "import http.server, socketserver, sys, os\n"
        "uds, key = sys.argv[1], open(sys.argv[2]).read()\n"
        "assert os.stat(sys.argv[2]).st_mode & 0o777 == 0o600 and len(key) == 64\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        ok = self.headers.get('Authorization') == 'Bearer ' + key\n"
        "        self.send_response(200 if ok else 401); self.end_headers()\n"
        "    def address_string(self): return 'uds'\n"
        "socketserver.ThreadingUnixStreamServer(uds, H).serve_forever()\n"
    )
    command = (sys.executable, "-c", code, "{uds}", "{api_key_file}")
    engine = ProcessLauncher().launch(LaunchSpec(command, model))
    try:
        assert engine.uds is not None
        folder = Path(engine.uds).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        stranger = NativeClient(Endpoint(engine.base_url, engine.uds))
        assert stranger.health().status == 401
        health = engine.client.health()
        assert health.status == 200
        assert dict(health.request_headers)["Authorization"] == "[redacted]"
    finally:
        engine.stop()
    assert not folder.exists()
