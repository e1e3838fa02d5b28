"""The engine's contract on the real default model, in a process of its own."""

import http.server
import json
import random
import threading
from pathlib import Path
from typing import Any

from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from tests.integration.engine_process import (
    MODEL,
    EngineProcess,
    Stream,
    exit_code,
    launched,
    text_of,
    wait_until,
)

ROUTES = [
    *(("POST", f"/{name}") for name in ("execute", "cancel", "score", "tokenize", "detokenize")),
    *(("GET", f"/{name}") for name in ("health", "metrics", "nowhere")),
    ("POST", "/shutdown"),
]


def test_stream_detokenize_and_openai_give_one_text(engine: EngineProcess) -> None:
    events = engine.execute(prompt="The capital of France is", max_tokens=12)
    ids = [fields["id"] for name, fields in events if name == "token"]
    whole = engine.client.post("/detokenize", json={"ids": ids}).json()["text"]
    openai = engine.client.post(
        "/v1/completions",
        json={
            "model": MODEL.stem,
            "prompt": "The capital of France is",
            "max_tokens": 12,
            "temperature": 0,
        },
    ).json()
    assert text_of(events) == whole == openai["choices"][0]["text"]
    assert "Paris" in whole


def test_the_engine_scores_its_own_greedy_tokens_first(engine: EngineProcess) -> None:
    events = engine.execute(prompt="Water is", max_tokens=10)
    ids = [fields["id"] for name, fields in events if name == "token"]
    prompt_ids = engine.client.post("/tokenize", json={"text": "Water is"}).json()["ids"]
    body = {"prompt_ids": prompt_ids, "completion_ids": ids}
    scores = engine.client.post("/score", json=body).json()["scores"]
    assert [score["rank"] for score in scores] == [0] * len(ids)
    assert [score["argmax_id"] for score in scores] == ids


def test_ten_thousand_random_ids_give_the_whole_characters_of_their_bytes(
    engine: EngineProcess,
) -> None:
    with GGUFFile.open(MODEL) as file:
        tokenizer = Tokenizer.from_file(file)
    draw = random.Random(5)
    for _ in range(50):
        ids = [draw.randrange(49152) for _ in range(200)]
        text = engine.client.post("/detokenize", json={"ids": ids}).json()["text"]
        spelled = b"".join(map(tokenizer.token_bytes, ids))
        assert text == spelled.decode(errors="ignore")


def test_health_is_answered_while_a_job_decodes(engine: EngineProcess) -> None:
    """Again and again during one job; further jobs are for a test that stood still during one."""
    answers = [0]
    while max(answers) < 20:
        assert len(answers) < 6, f"answers while a job decodes: {answers}"
        long = {"prompt": "Once", "max_tokens": 2000, "temperature": 1.0, "seed": 1}
        job = Stream(engine, job_id=f"beside health {len(answers)}", **long)
        wait_until(lambda job=job: "event: token" in job.text)
        answers.append(0)
        while job.is_alive() and answers[-1] < 20:
            assert engine.client.get("/health").status_code == 200
            answers[-1] += "event: end" not in job.text
        assert engine.client.post("/cancel", json={"job_id": job.job_id}).status_code == 202
        assert job.ending[0] in ("end", "error")


def test_no_byte_that_the_process_writes_quotes_a_request(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("canarykey123\n")
    with launched(tmp_path, "--api-key-file", str(key)) as engine:
        engine.client.headers["authorization"] = "Bearer canarykey123"
        engine.client.headers["x-canary"] = "canaryheader"
        said = text_of(engine.execute(prompt="canaryprompt says", max_tokens=30))
        for body in (
            {"canaryfield": 1},
            {"job_id": "j", "prompt": "canaryprompt", "top_p": "canary"},
        ):
            assert engine.client.post("/execute", json=body).status_code == 400
        engine.client.post("/execute", content=b"canarybody")
        engine.client.get("/canarypath")
        for wrong in ("Bearer canarykey", "canarykey123", "Bearer canarykey1234", ""):
            for route in ROUTES:
                refused = engine.client.request(*route, headers={"authorization": wrong})
                assert (refused.status_code, refused.json()["code"]) == (401, "UNAUTHORIZED")
                assert refused.headers["www-authenticate"] == "Bearer"
            openai = engine.client.get("/v1/models", headers={"authorization": wrong})
            assert openai.status_code == 401
            assert openai.json()["error"]["code"] == "invalid_api_key"
        assert engine.stop() == 0
        written = engine.log.read_text()
    assert "canary" not in written
    assert said.strip()[:20] not in written
    events = {line["event"] for line in engine.lines}
    assert {"startup", "ready", "execute_start", "execute_end", "error", "shutdown"} <= events
    assert all(len(line["human"]) <= 100 for line in engine.lines)


def test_a_unix_socket_serves_and_is_removed(tmp_path: Path) -> None:
    uds = tmp_path / "e.sock"
    with launched(tmp_path, uds=uds) as engine:
        assert uds.stat().st_mode & 0o777 == 0o600
        assert engine.client.get("/health").json()["status"] == "healthy"
        assert engine.client.post("/shutdown").status_code == 202
        assert exit_code(engine.process) == 0
    assert not uds.exists()


def test_the_ready_callback_comes_when_health_answers(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            calls.append(json.loads(self.rfile.read(size)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker_id = "12345678-1234-1234-1234-123456789abc"
    url = f"http://127.0.0.1:{server.server_port}/ready"
    with launched(tmp_path, "--callback-url", url, "--worker-id", worker_id):
        wait_until(lambda: calls)
    server.shutdown()
    server.server_close()
    assert {call["worker_id"] for call in calls} == {worker_id}  # again where no answer came soon
