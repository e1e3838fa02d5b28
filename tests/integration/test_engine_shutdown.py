"""SIGTERM and /shutdown in every phase: who is served, who is told, and a clean exit."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.engine_process import (
    WAIT_S,
    EngineProcess,
    Stream,
    exit_code,
    launched,
    parse,
    started,
    wait_until,
)

LONG = {"prompt": "Count:", "max_tokens": 2048, "temperature": 1.0, "seed": 1}


def assert_clean_end(engine: EngineProcess) -> None:
    assert engine.stop() == 0
    assert [line["event"] for line in engine.lines].count("shutdown") == 1
    assert engine.lines[-1]["event"] == "shutdown"


def test_idle(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        assert_clean_end(engine)
        assert engine.events("shutdown")[0]["reason"] == "SIGTERM"


def test_during_prefill_the_job_is_cancelled(tmp_path: Path) -> None:
    """The prompt takes one thread of any machine far longer than a shutdown waits."""
    with launched(tmp_path, "--threads", "1") as engine:
        prompt = {"prompt": "x y z " * 2600, "max_tokens": 16}
        job = Stream(engine, job_id="long", **(LONG | prompt))
        engine.await_event("execute_start")
        assert_clean_end(engine)
        assert (job.ending[0], job.ending[1]["code"]) == ("error", "CANCELLED")
        assert "event: token" not in job.text


def test_during_decode_a_short_job_finishes(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        job = Stream(engine, job_id="short", **(LONG | {"max_tokens": 6}))
        wait_until(lambda: "event: token" in job.text)
        assert_clean_end(engine)
        assert job.ending[0] == "end"


def test_the_running_job_is_cancelled_after_a_while_and_the_waiting_ones_at_once(
    tmp_path: Path,
) -> None:
    with launched(tmp_path) as engine:
        jobs = [Stream(engine, job_id=f"j{index}", **LONG) for index in range(4)]
        wait_until(lambda: "event: token" in jobs[0].text)
        assert_clean_end(engine)
        told = [(job.ending[0], job.ending[1].get("code")) for job in jobs]
        assert told[0] in [("error", "CANCELLED"), ("end", None)]
        assert told[1:] == [("error", "CANCELLED")] * 3
        assert all(parse(job.text)[0][0] == "started" for job in jobs)
        cancelled = [line["job_id"] for line in engine.events("cancel")]
        assert sorted(cancelled[:3]) == ["j1", "j2", "j3"]
        assert len(engine.events("execute_start")) == 1


def test_new_work_is_refused_while_the_running_job_ends(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        job = Stream(engine, job_id="long", **LONG)
        wait_until(lambda: "event: token" in job.text)
        assert engine.client.post("/shutdown").status_code == 202

        def is_refused() -> bool:
            return engine.client.post("/tokenize", json={"text": "x"}).status_code == 503

        wait_until(is_refused)
        refused = engine.client.post("/execute", json={"job_id": "new", "prompt": "x"})
        assert (refused.status_code, refused.json()["code"]) == (503, "SHUTTING_DOWN")
        assert int(refused.headers["retry-after"]) >= 1
        assert engine.client.get("/health").status_code == 200
        assert exit_code(engine.process) == 0
        assert engine.events("shutdown")[0]["reason"] == "POST /shutdown"


def test_a_text_being_tokenized_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        answers: list[int] = []

        def ask() -> None:
            body = {"text": "1" * 1_000_000}
            with contextlib.suppress(httpx.TransportError):  # it came when the engine was gone
                answers.append(engine.client.post("/tokenize", json=body).status_code)

        wait_until(lambda: engine.client.get("/health").json()["model_sha256"])
        engine_process = psutil.Process(engine.process.pid)
        n_threads = engine_process.num_threads()
        clients = [threading.Thread(target=ask, daemon=True) for _ in range(6)]
        for client in clients:
            client.start()
        wait_until(lambda: engine_process.num_threads() > n_threads)  # that tokenize
        with socket.create_connection((engine.host, engine.port)):
            assert_clean_end(engine)
        for client in clients:
            client.join(WAIT_S)
        assert set(answers) <= {200, 503}


def test_a_client_that_reads_nothing_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    with launched(tmp_path) as engine, socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((engine.host, engine.port))
        body = b'{"job_id": "a", "prompt": "Count:", "max_tokens": 2000, "logprobs": 20}'
        head = b"POST /execute HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        silent.sendall(head + body)
        engine.await_event("execute_start")
        assert_clean_end(engine)


def test_a_callback_that_nobody_answers_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        with launched(tmp_path, "--callback-url", url) as engine:
            assert engine.client.get("/health").status_code == 200
            assert_clean_end(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_load_is_a_clean_end(tmp_path: Path, number: int) -> None:
    with started(tmp_path) as engine:
        engine.await_event("model_load_start")
        engine.process.send_signal(number)
        assert exit_code(engine.process) == 0
        assert engine.lines[-1]["event"] == "shutdown"
        assert not engine.events("error")


def test_signals_that_come_twice_change_nothing(tmp_path: Path) -> None:
    uds = tmp_path / "e.sock"
    with launched(tmp_path, uds=uds) as engine, _many_signals(engine):
        assert exit_code(engine.process) == 0
    assert not uds.exists()


@contextlib.contextmanager
def _many_signals(engine: EngineProcess) -> Iterator[None]:
    """SIGTERM and SIGINT in turn until the process is gone."""

    def send() -> None:
        while engine.process.poll() is None:
            engine.process.send_signal(signal.SIGTERM)
            engine.process.send_signal(signal.SIGINT)
            over.wait(0.01)

    over = threading.Event()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    yield
    over.set()
    sender.join(WAIT_S)
