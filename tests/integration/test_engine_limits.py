"""Limits in time and number: timeouts, the queue, bodies, slow readers, idle connections."""

import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.engine_process import (
    WAIT_S,
    EngineProcess,
    Stream,
    launched,
    wait_until,
)

LONG: dict[str, Any] = {"prompt": "Count:", "max_tokens": 2048, "temperature": 1.0, "seed": 1}
MIB = 1 << 20


def test_a_job_that_runs_too_long_ends_with_an_event_and_waiting_does_not_count(
    tmp_path: Path,
) -> None:
    options = ("--inference-timeout-s", "1.5", "--residency-check-s", "0", "--threads", "1")
    with launched(tmp_path, *options) as engine:
        jobs = [Stream(engine, job_id=f"j{index}", **LONG) for index in range(3)]
        for job in jobs:
            name, error = job.ending
            assert (name, error["code"], error["retriable"]) == ("error", "INFERENCE_TIMEOUT", True)
            assert "1.5 s" in error["message"]
        ran_ms = [line["duration_ms"] for line in engine.events("error")]
        assert min(ran_ms) >= 1500, "it waited longer than it may run, and then ran"
        in_prefill = Stream(engine, job_id="prefill", **(LONG | {"prompt": "x y z " * 1900}))
        assert in_prefill.ending[1]["code"] == "INFERENCE_TIMEOUT"
        assert "event: token" not in in_prefill.text
        health = engine.client.get("/health").json()
        assert (health["status"], health["kv_bytes"]) == ("healthy", 0)
        assert health["last_error"]["code"] == "INFERENCE_TIMEOUT"
        timeouts = 'worker_requests_total{outcome="timeout"} 4.0'
        assert timeouts in engine.client.get("/metrics").text
        told = [line["error_kind"] for line in engine.events("error")]
        assert told == ["INFERENCE_TIMEOUT"] * 4
        while (last := engine.execute(prompt="x", max_tokens=1)[-1])[0] != "end":
            assert last[1]["code"] == "INFERENCE_TIMEOUT", "but where a machine stands still"
        assert not engine.events("residency_check")


def test_residency_is_checked_again_and_again(tmp_path: Path) -> None:
    with launched(tmp_path, "--residency-check-s", "0.2") as engine:
        wait_until(lambda: len(engine.events("residency_check")) >= 3)
        engine.execute(prompt="x", max_tokens=2)
        before = len(engine.events("residency_check"))
        wait_until(lambda: len(engine.events("residency_check")) > before)
        assert {line["level"] for line in engine.events("residency_check")} == {"info"}
        assert engine.client.get("/health").json()["resident"] is True


def test_one_job_runs_sixteen_wait_and_the_next_is_sent_away(engine: EngineProcess) -> None:
    jobs = [Stream(engine, job_id=f"queue-{index}", **LONG) for index in range(17)]
    full = engine.client.post("/execute", json={"job_id": "one more", **LONG})
    assert (full.status_code, full.json()["code"]) == (503, "QUEUE_FULL")
    assert full.json()["retriable"] is True
    assert int(full.headers["retry-after"]) >= 1
    scoring = engine.client.post("/score", json={"prompt_ids": [1], "completion_ids": [2]})
    assert scoring.status_code == 503
    for index in (0, 9):
        body = {"job_id": f"queue-{index}", **LONG}
        duplicate = engine.client.post("/execute", json=body)
        assert (duplicate.status_code, duplicate.json()["code"]) == (409, "DUPLICATE_JOB")
    for index in reversed(range(17)):
        cancelled = engine.client.post("/cancel", json={"job_id": f"queue-{index}"})
        assert cancelled.status_code == 202
    assert [job.ending[1]["code"] for job in jobs] == ["CANCELLED"] * 17
    assert engine.execute(job_id="queue-3", prompt="x", max_tokens=1)[-1][0] == "end"
    again = engine.client.post("/cancel", json={"job_id": "queue-3"})
    assert again.status_code == 202, "a job that is over was cancelled: nothing to do"
    never = engine.client.post("/cancel", json={"job_id": "never seen"})
    assert (never.status_code, never.json()["code"]) == (404, "UNKNOWN_JOB")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_a_mebibyte_is_refused(engine: EngineProcess, chunked: bool) -> None:
    def pieces(size: int) -> Iterator[bytes]:
        yield from (b"x" * 65536 for _ in range(size // 65536))
        yield b"x" * (size % 65536)

    for size, status, code in (
        (MIB, 400, "INVALID_REQUEST"),
        (MIB + 1, 413, "BODY_TOO_LARGE"),
        (3 * MIB, 413, "BODY_TOO_LARGE"),
    ):
        content = pieces(size) if chunked else b"x" * size
        answer = engine.client.post("/execute", content=content)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@contextlib.contextmanager
def silent_reader(engine: EngineProcess, **body: Any) -> Iterator[socket.socket]:
    """A client that asks and then reads nothing."""
    content = json.dumps(body).encode()
    head = b"POST /execute HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((engine.host, engine.port))
        connection.sendall(head + content)
        yield connection


def served(engine: EngineProcess, client: socket.socket) -> bool:
    """Whether the engine still holds its end of this connection."""
    address = client.getsockname()
    held = psutil.Process(engine.process.pid).net_connections("tcp")
    return any(tuple(connection.raddr) == address for connection in held)


def test_readers_that_stop_reading_stall_nobody_cost_little_and_are_cut_off(
    engine: EngineProcess,
) -> None:
    def over(event: str) -> list[str]:
        return [line["job_id"] for line in engine.events(event) if "job_id" in line]

    silent = {"silent-0", "silent-1"}
    rss = psutil.Process(engine.process.pid).memory_info().rss
    body = LONG | {"max_tokens": 900, "logprobs": 20}
    with (
        silent_reader(engine, job_id="silent-0", **body) as first,
        silent_reader(engine, job_id="silent-1", **body) as second,
    ):
        assert engine.execute(prompt="x", max_tokens=2)[-1][0] == "end"
        assert engine.client.get("/health").status_code == 200
        assert psutil.Process(engine.process.pid).memory_info().rss < rss + 24 * MIB
        wait_until(lambda: silent <= {*over("execute_end"), *over("cancel")})
        wait_until(lambda: not served(engine, first) and not served(engine, second))
        for connection in (first, second):
            connection.settimeout(WAIT_S)
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    got += piece
            assert b"event: token" in got
            assert b"event: end" not in got, "cut off before the end"


def test_a_thousand_idle_connections_do_not_stop_service(engine: EngineProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as idle:
        idle.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for index in range(1000):
            connection = socket.create_connection((engine.host, engine.port), timeout=60)
            idle.enter_context(connection)
            if index % 2:
                connection.sendall(b"POST /execute HTTP/1.1\r\nhost:")
        assert engine.execute(prompt="x", max_tokens=2)[-1][0] == "end"
        assert engine.client.get("/health").status_code == 200


def test_a_long_text_does_not_hold_up_the_others(engine: EngineProcess) -> None:
    """Other requests are answered while one is at work for a second or more."""
    text, answers = {"text": "1" * 1_000_000}, [0]
    while max(answers) < 10:
        assert len(answers) < 20, f"answers while it is at work: {answers}"
        work = Stream(engine, path="/tokenize", waits=False, **text)
        answers.append(0)
        while work.is_alive():
            assert engine.client.get("/health").status_code == 200
            answers[-1] += work.is_alive()
        assert work.status == 200
