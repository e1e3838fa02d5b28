"""Starts that succeed, in order, and those that fail: one line, and the right exit code."""

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine_process import COMMAND, MODEL, WAIT_S, launched
from tests.unit.gguf_files import entry, raw_file, written

LIMIT_MB = 50


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=WAIT_S)


def failed_start(*options: str) -> dict[str, Any]:
    """The one error event of a start that must fail."""
    port = () if "--port" in options else ("--port", "0")
    done = run("serve", "--log-format", "json", *port, *options)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    errors = [line for line in lines if line["event"] == "error"]
    assert (done.returncode, len(errors), done.stdout) == (1, 1, ""), done.stderr
    assert lines[-1] is errors[0]
    assert errors[0]["level"] == "error"
    assert {"code", "message", "device", "model_path"} <= set(errors[0])
    return errors[0]


def test_the_order_is_device_model_http_ready(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        names = [line["event"] for line in engine.lines]
        progress = ["model_load_progress"] * 5
        assert names[:8] == ["startup", "model_load_start", *progress, "model_load_complete"]
        assert names[8] == "ready"
        ready = engine.events("ready")[0]
        assert ready["host"] == "127.0.0.1"
        assert engine.client.get("/health").json()["status"] == "healthy"


def test_options_that_bound_requests_and_name_the_worker(tmp_path: Path) -> None:
    worker_id = "12345678-1234-1234-1234-123456789abc"
    options = ("--context-length", "64", "--max-tokens-out", "8", "--threads", "1")
    with launched(tmp_path, *options, "--worker-id", worker_id) as engine:
        health = engine.client.get("/health").json()
        assert (health["context_length"], health["worker_id"]) == (64, worker_id)
        assert engine.execute(prompt="Count:", max_tokens=8)[-1][1]["tokens_out"] == 8
        for body, field in (
            ({"prompt": "x", "max_tokens": 9}, "max_tokens"),
            ({"prompt_ids": [5] * 60, "max_tokens": 5}, "max_tokens"),
            ({"prompt_ids": [5] * 64}, "prompt"),
        ):
            answer = engine.client.post("/execute", json={"job_id": "a", **body})
            assert (answer.status_code, answer.json()["field"]) == (400, field)
        body = {"job_id": "all", "prompt_ids": [5] * 60, "temperature": 0.0, "seed": 1}
        assert "event: end" in engine.client.post("/execute", json=body).text
        assert {line["worker_id"] for line in engine.lines} == {worker_id}
        assert {line["actor"] for line in engine.lines} == {"haikugate-engine"}


def _missing(folder: Path) -> Path:
    return folder / "missing.gguf"


def _folder(folder: Path) -> Path:
    return folder


def _not_gguf(folder: Path) -> Path:
    path = folder / "not.gguf"
    path.write_bytes(b"PK" + bytes(100))
    return path


def _cut_off(folder: Path) -> Path:
    path = folder / "cut.gguf"
    path.write_bytes(MODEL.read_bytes()[: 5 << 20])
    return path


def _another_architecture(folder: Path) -> Path:
    return written(folder / "mamba.gguf", "mamba", {})


def _another_type(folder: Path) -> Path:
    return raw_file(folder / "iq2.gguf", [], [entry(b"blk.0.attn_q.weight", (256,), type_id=16)])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "missing.gguf"),
        (_folder, "not a regular file"),
        (_not_gguf, "GGUF"),
        (_cut_off, "cut off"),
        (_another_architecture, "mamba"),
        (_another_type, "IQ2_XXS"),
    ],
)
def test_a_file_that_is_no_model_of_ours(
    tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    error = failed_start("--model", str(make(tmp_path)))
    assert error["code"] == "MODEL_LOAD_FAILED"
    assert says in error["message"]


def test_a_limit_below_the_need_names_both_numbers() -> None:
    error = failed_start("--model", str(MODEL), "--memory-limit-mb", str(LIMIT_MB))
    assert error["code"] == "INSUFFICIENT_VRAM"
    assert error["required_bytes"] > error["available_bytes"] == LIMIT_MB << 20
    assert f"{error['required_bytes']} bytes required" in error["message"]
    enough_mb = (error["required_bytes"] >> 20) + 8
    assert enough_mb > LIMIT_MB


def test_a_device_that_is_not_there() -> None:
    error = failed_start("--model", str(MODEL), "--device", "cuda:0")
    assert (error["code"], error["device"]) == ("CUDA_ERROR", "cuda:0")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = failed_start("--model", str(MODEL), "--port", port)
    assert error["code"] == "BIND_FAILED"
    assert port in error["message"]


def test_a_unix_socket_that_another_process_serves(tmp_path: Path) -> None:
    uds = tmp_path / "e.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(uds))
        other.listen()
        error = failed_start("--model", str(MODEL), "--uds", str(uds))
        assert error["code"] == "BIND_FAILED"
        assert uds.exists()


def test_a_unix_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    uds = tmp_path / "e.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(uds))
    with launched(tmp_path, uds=uds) as engine:
        assert engine.client.get("/health").status_code == 200


BAD = [
    (["--host", "0.0.0.0"], "--api-key-file"),
    (["--host", "::"], "--api-key-file"),
    (["--host", "example.org"], "--api-key-file"),
    (["--host", "0.0.0.0", "--api-key-file", "/nowhere"], "cannot be read"),
    (["--api-key-file", "/dev/null"], "printable ASCII"),
    (["--port", "99999"], "65535"),
    (["--port", "-1"], "--port"),
    (["--threads", "513"], "--threads"),
    (["--device", "tpu"], "cpu or cuda:N"),
    (["--device", "cuda:x"], "cpu or cuda:N"),
    (["--device", "cuda:1", "--gpu-device", "2"], "disagree"),
    (["--gpu-device", "-1"], "--gpu-device"),
    (["--uds", "/" + "x" * 120], "107"),
    (["--worker-id", "x"], "UUID"),
    (["--callback-url", "ftp://x"], "http"),
    (["--callback-url", "/relative"], "http"),
    (["--log-format", "xml"], "json or human"),
    (["--max-tokens-out", "0"], "--max-tokens-out"),
    (["--context-length", "-1"], "--context-length"),
    (["--kv-cache-mb", "-1"], "--kv-cache-mb"),
    (["--memory-limit-mb", "1.5"], "--memory-limit-mb"),
    (["--inference-timeout-s", "0"], "--inference-timeout-s"),
    (["--residency-check-s", "-1"], "--residency-check-s"),
    (["--threads", "-1"], "--threads"),
    (["--nonsense"], "--nonsense"),
    (["--model", "y.gguf"], "--model: given 2 times"),
    (["-m", "y.gguf"], "--model: given 2 times"),
    (["--port", "0", "--port=0"], "--port: given 2 times"),
    (["surprise"], "surprise"),
    (["--port"], "--port"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(o)[:40] for o, _ in BAD])
def test_bad_arguments_are_one_line_and_exit_code_two(options: list[str], says: str) -> None:
    done = run("serve", "--model", "x.gguf", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("haikugate-engine: ")
    assert says in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["serve"], 2), ([], 2), (["fly"], 2)]
)
def test_the_command_itself(arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr
