"""A gate run against an engine that already runs somewhere: `--engine-url`."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.unit.gate_project import CHECKS, GateProject

SUITE = """
import pytest

@pytest.mark.check("G1-ONE")
@pytest.mark.parametrize("size", [1, 2])
def test_one(engine, observe, size):
    observe(models=engine.client.raw("GET", "/v1/models"), facts=engine.process_facts())

@pytest.mark.check("G1-TWO", "G2-ONE")
def test_two(observe):
    observe(seen=2)

@pytest.mark.check("G3-ONE")
def test_three(observe):
    observe(seen=3)

@pytest.mark.check("G4-ONE")
def test_four(observe):
    observe(seen=4)
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", ["native", "openai"])
def test_what_runs_there_is_judged_and_its_process_is_not(
    project: GateProject, url: str, kind: str
) -> None:
    project.suite(SUITE)
    result = project.run("--engine", kind, "--engine-url", url)
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts() == {
        **dict.fromkeys(CHECKS, "pass"),
        "G4-TRACE": "not_applicable",
        "G4-GATES-1-3": "not_applicable",
    }
    assert "Nothing about the process is proven." in project.bundle.checks["title"]
    assert ("Behavioural profile." in project.bundle.checks["title"]) == (kind == "openai")
    assert project.bundle.metadata["engine"]["url"] == url


@pytest.mark.parametrize(
    ("asked", "said"), [('"--kv-cache-mb", "4"', "--kv-cache-mb 4"), ("env={'A': 'b'}", "another")]
)
def test_what_it_cannot_be_launched_with_is_an_error_and_no_verdict(
    project: GateProject, url: str, asked: str, said: str
) -> None:
    suite = SUITE.replace(
        "test_two(observe):", f"test_two(observe, launch_engine):\n    launch_engine({asked})"
    )
    project.suite(suite)
    result = project.run("--engine-url", url)
    assert result.ret == 1
    assert project.verdicts()["G1-TWO"] == "error"
    result.stdout.fnmatch_lines([f"*attached, so it cannot be launched again with {said}*"])


def test_where_nobody_answers_every_check_is_an_error(project: GateProject) -> None:
    project.suite(SUITE)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        result = project.run("--engine-url", url, "--ready-timeout", "0.5")
    assert result.ret == 1
    assert project.verdicts()["G1-ONE"] == "error"
    result.stdout.fnmatch_lines(["*no answer within 0.5 s; start it first*"])
