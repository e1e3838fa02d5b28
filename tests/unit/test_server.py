"""The HTTP rules of the engine's contract, on a runtime whose speed the test chooses."""

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from engine import server
from engine.errors import DeviceError, OutOfMemory
from tests.unit.engine_fakes import FakeRuntime, Serving, serving

HTTP = httpx.Client(
    verify=False, trust_env=False, timeout=120, limits=httpx.Limits(max_keepalive_connections=0)
)


def post(s: Serving, path: str, **fields: Any) -> httpx.Response:
    return HTTP.post(s.url + path, json=fields)


def execute(s: Serving, **fields: Any) -> httpx.Response:
    body = {"job_id": str(uuid.uuid4()), "prompt": "hi", "max_tokens": 4, **fields}
    return post(s, "/execute", **body)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks]


def in_background(s: Serving, *job_ids: str, **fields: Any) -> list[httpx.Response]:
    answers: list[httpx.Response] = []
    for job_id in job_ids:
        body = {"job_id": job_id, **fields}
        threading.Thread(target=_answer_into, args=(answers, s, body), daemon=True).start()
    return answers


def _answer_into(answers: list[httpx.Response], s: Serving, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TransportError):  # the server of a finished test is gone
        answers.append(execute(s, **body))


def until(condition: Callable[[], Any], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def raw_request(path: str, body: bytes, *, chunked: bool = False) -> bytes:
    length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    head = b"POST %s HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n" % (path.encode(), length)
    if not chunked:
        return head + body
    pieces = [body[i : i + 65536] for i in range(0, len(body), 65536)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def talk(s: Serving, sent: bytes) -> bytes:
    with socket.create_connection(s.address, timeout=20) as connection:
        connection.sendall(sent)
        answer = b""
        while b"\r\n\r\n" not in answer or b"}" not in answer:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
        return answer


GOOD: list[dict[str, Any]] = [
    {"job_id": "x" * 256}, {"prompt": "x"}, {"prompt": "x" * 2000}, {"max_tokens": 1},
    {"max_tokens": 2048}, {"temperature": 0.0}, {"temperature": 2.0}, {"temperature": 1},
    {"top_p": 1.0}, {"top_p": 1e-6}, {"top_k": 0}, {"top_k": 258}, {"min_p": 0.0}, {"min_p": 1.0},
    {"repetition_penalty": 2.0}, {"repetition_penalty": 0.01}, {"stop": []}, {"stop": ["x" * 32]},
    {"stop": ["a", "b", "c", "d"]}, {"seed": 0}, {"seed": 2**64 - 1}, {"logprobs": False},
    {"logprobs": 0}, {"logprobs": 20}, {"cache_prompt": True},
    {"prompt": None, "prompt_ids": [0, 257]},
    {"prompt": None, "messages": [{"role": "user", "content": "x"}]},
]  # fmt: skip
BAD: list[tuple[str, dict[str, Any]]] = [
    ("job_id", {"job_id": ""}), ("job_id", {"job_id": "x" * 257}), ("job_id", {"job_id": 1}),
    ("prompt", {"prompt": ""}), ("prompt", {"prompt": "x" * 32769}), ("prompt", {"prompt": 7}),
    ("prompt", {"prompt": None}), ("prompt", {"prompt": "x", "prompt_ids": [1]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": []}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [258]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [-1]}),
    ("messages", {"prompt": None, "messages": []}),
    ("messages", {"prompt": None, "messages": [{"role": "robot", "content": "x"}]}),
    ("max_tokens", {"max_tokens": 0}), ("max_tokens", {"max_tokens": 2049}),
    ("max_tokens", {"max_tokens": 1.5}), ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"prompt": "x" * 3000, "max_tokens": 2000}),
    ("temperature", {"temperature": -0.01}), ("temperature", {"temperature": 2.01}),
    ("temperature", {"temperature": "hot"}), ("top_p", {"top_p": 0.0}), ("top_p", {"top_p": 1.01}),
    ("top_k", {"top_k": -1}), ("top_k", {"top_k": 259}), ("min_p", {"min_p": -0.1}),
    ("min_p", {"min_p": 1.1}), ("repetition_penalty", {"repetition_penalty": 0.0}),
    ("repetition_penalty", {"repetition_penalty": 2.1}), ("stop", {"stop": ["a"] * 5}),
    ("stop", {"stop": ["x" * 33]}), ("stop", {"stop": [""]}), ("stop", {"stop": "x"}),
    ("seed", {"seed": -1}), ("seed", {"seed": 2**64}), ("logprobs", {"logprobs": 21}),
    ("logprobs", {"logprobs": -1}), ("logprobs", {"logprobs": True}),
    ("logprobs", {"logprobs": 0.0}),
    ("cache_prompt", {"cache_prompt": 1}), ("surprise", {"surprise": 1}),
]  # fmt: skip


def test_each_bound_is_accepted_and_what_is_past_it_is_refused_by_name() -> None:
    with serving() as s:
        for fields in GOOD:
            answer = execute(s, **fields)
            assert (answer.status_code, fields) == (200, fields)
            assert events_of(answer.text)[-1][0] == "end"
        for field, fields in BAD:
            answer = execute(s, **fields)
            said = answer.json()
            assert (answer.status_code, said["field"]) == (400, field), (fields, said)
            assert (said["code"], said["retriable"]) == ("INVALID_REQUEST", False)
        too_long = execute(s, prompt="x" * 3000, max_tokens=2000).json()["message"]
        assert "3000" in too_long
        assert "4096" in too_long


def test_no_alternatives_are_not_no_logprobs() -> None:
    with serving() as s:
        for wanted in (0, 2, False):
            told = events_of(execute(s, logprobs=wanted).text)
            tokens = [fields for name, fields in told if name == "token"]
            assert tokens
            for token in tokens:
                assert ("logprob" in token) is (wanted is not False)
                assert len(token.get("top", [])) == (wanted or 0)


def test_nan_is_refused_by_name() -> None:
    with serving() as s:
        body = b'{"job_id": "a", "prompt": "x", "temperature": NaN}'
        assert HTTP.post(s.url + "/execute", content=body).json()["field"] == "temperature"


def test_the_queue_holds_sixteen_and_duplicates_are_refused() -> None:
    with serving(FakeRuntime(hold="decode")) as s:
        running = in_background(s, "running")
        until(s.runtime.holding.is_set)
        waiting = in_background(s, *(f"b{index}" for index in range(16)))
        until(lambda: s.worker.queue.depth == 16)
        full = execute(s)
        assert (full.status_code, full.json()["retriable"]) == (503, True)
        assert int(full.headers["retry-after"]) >= 1
        duplicate = execute(s, job_id="b3")
        assert (duplicate.status_code, duplicate.json()["code"]) == (409, "DUPLICATE_JOB")
        s.runtime.released.set()
        until(lambda: len(running + waiting) == 17)
        assert {answer.status_code for answer in running + waiting} == {200}
        assert execute(s, job_id="b3").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_over_a_mebibyte_are_refused_however_they_come(chunked: bool) -> None:
    with serving() as s:
        answer = talk(s, raw_request("/execute", b"x" * (1 << 20), chunked=chunked))
        assert answer.startswith(b"HTTP/1.1 400")
        answer = talk(s, raw_request("/execute", b"x" * ((1 << 20) + 1), chunked=chunked))
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"BODY_TOO_LARGE" in answer


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 128])
def test_a_valid_correlation_id_is_echoed_and_narrated(given: str) -> None:
    with serving() as s:
        headers = {"x-correlation-id": given}
        body = {"job_id": "a", "prompt": "x", "max_tokens": 1}
        answer = HTTP.post(s.url + "/execute", json=body, headers=headers)
        assert answer.headers["x-correlation-id"] == given
        assert {line["correlation_id"] for line in s.lines if line.get("job_id") == "a"} == {given}


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\xff", b"{}", b"a;b"])
def test_a_hostile_correlation_id_is_replaced_by_a_uuid(given: bytes) -> None:
    with serving() as s:
        for path in ("/health", "/nowhere"):
            answer = HTTP.get(s.url + path, headers={b"x-correlation-id": given})
            assert uuid.UUID(answer.headers["x-correlation-id"])


def test_refusals_have_one_shape() -> None:
    with serving() as s:
        for answer, status, code in (
            (HTTP.get(s.url + "/nowhere"), 404, "NOT_FOUND"),
            (HTTP.get(s.url + "/execute"), 405, "METHOD_NOT_ALLOWED"),
            (post(s, "/cancel", job_id="never"), 404, "UNKNOWN_JOB"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert set(answer.json()) == {"code", "message", "retriable"}
        assert b"400" in talk(s, b"NOT HTTP\r\n\r\n")


def test_the_key_is_needed_on_every_route() -> None:
    with serving(api_key="sesame") as s:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}):
            assert HTTP.get(s.url + "/health", headers=headers).status_code == 401
        right = {"authorization": "Bearer sesame"}
        assert HTTP.get(s.url + "/health", headers=right).status_code == 200
        assert "sesame" not in json.dumps(s.lines)


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_cancel_takes_effect_at_once_in_each_phase(phase: str) -> None:
    with serving(FakeRuntime(hold="prefill" if phase == "prefill" else "decode")) as s:
        wanted, answers = "running", in_background(s, "running")
        until(s.runtime.holding.is_set)
        if phase == "queued":
            wanted, answers = "waiting", in_background(s, "waiting")
            until(lambda: s.worker.queue.depth == 1)
        assert post(s, "/cancel", job_id=wanted).status_code == 202
        until(lambda: answers)
        events = events_of(answers[0].text)
        assert events[0][0] == "started"
        assert (events[-1][0], events[-1][1]["code"]) == ("error", "CANCELLED")
        assert post(s, "/cancel", job_id=wanted).status_code == 202
        post(s, "/cancel", job_id="running")
        until(lambda: s.runtime.open_sequences == 0)


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_ends_its_job_in_each_phase(phase: str) -> None:
    with serving(FakeRuntime(hold="prefill" if phase == "prefill" else "decode")) as s:
        if phase == "queued":
            in_background(s, "running")
            until(s.runtime.holding.is_set)
        body = json.dumps({"job_id": "gone", "prompt": "x", "max_tokens": 4}).encode()
        with socket.create_connection(s.address) as connection:
            connection.sendall(raw_request("/execute", body))
            connection.recv(1000)
            until(s.runtime.holding.is_set)
        until(lambda: any(x["event"] == "cancel" and x["job_id"] == "gone" for x in s.lines))


def test_a_job_that_runs_too_long_times_out() -> None:
    with serving(FakeRuntime(token_s=0.01), inference_timeout_s=0.1) as s:
        last = events_of(execute(s, max_tokens=2000).text)[-1]
        assert (last[0], last[1]["code"], last[1]["retriable"]) == (
            "error",
            "INFERENCE_TIMEOUT",
            True,
        )


def test_out_of_memory_is_an_event_then_unhealthy_then_healthy_again() -> None:
    error = OutOfMemory("the KV cache is full", required_bytes=9, available_bytes=4)
    with serving(FakeRuntime(error_at={2: error})) as s:
        last = events_of(execute(s).text)[-1]
        assert (last[0], last[1]["code"]) == ("error", "VRAM_OOM")
        assert "9 bytes required, 4 bytes available" in last[1]["message"]
        sick = HTTP.get(s.url + "/health").json()
        assert (sick["status"], sick["last_error"]["code"]) == ("unhealthy", "VRAM_OOM")
        assert events_of(execute(s).text)[-1][0] == "end"
        assert HTTP.get(s.url + "/health").json()["status"] == "healthy"


def test_a_defect_ends_the_job_and_says_nothing_of_the_request() -> None:
    with serving(FakeRuntime(error_at={1: RuntimeError("secret prompt")})) as s:
        last = events_of(execute(s).text)[-1]
        assert (last[0], last[1]["code"]) == ("error", "INTERNAL")
        assert "secret" not in json.dumps(s.lines) + last[1]["message"]
        assert events_of(execute(s).text)[-1][0] == "end"


def test_lost_residency_turns_unhealthy() -> None:
    runtime = FakeRuntime()
    with serving(runtime, residency_check_s=0.02) as s:
        runtime.residency_error = DeviceError("the weights have moved")
        until(lambda: not HTTP.get(s.url + "/health").json()["resident"])
        assert HTTP.get(s.url + "/health").json()["status"] == "unhealthy"
        runtime.residency_error = None
        until(lambda: HTTP.get(s.url + "/health").json()["status"] == "healthy")


def test_tokens_generated_counts_what_was_seen() -> None:
    with serving() as s:
        execute(s, max_tokens=7)
        assert "worker_tokens_generated_total 7.0" in HTTP.get(s.url + "/metrics").text


def test_a_reader_that_stalls_does_not_stall_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for the time after which it is cut off, which here never comes."""
    monkeypatch.setattr(server, "STALL_TIMEOUT_S", 3600.0)
    with serving(FakeRuntime(token_s=0.0002)) as s:
        body = {"job_id": "stalled", "prompt": "x", "max_tokens": 2048, "logprobs": 20}
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(s.address)
            stalled.sendall(raw_request("/execute", json.dumps(body).encode()))
            until(lambda: s.runtime.prefilled == 1)
            assert events_of(execute(s).text)[-1][0] == "end"


def test_a_thousand_idle_connections_do_not_stop_service() -> None:
    with serving() as s:
        idle = [socket.create_connection(s.address) for _ in range(400)]
        idle += [socket.create_connection(s.address) for _ in range(600)]
        for connection in idle[::2]:
            connection.sendall(b"POST /execute HT")
        try:
            assert events_of(execute(s).text)[-1][0] == "end"
            assert HTTP.get(s.url + "/health").status_code == 200
        finally:
            for connection in idle:
                connection.close()


def test_new_work_is_refused_while_the_last_job_ends() -> None:
    with serving(FakeRuntime(token_s=0.01)) as s:
        answers = in_background(s, "last", max_tokens=40)
        until(lambda: s.runtime.prefilled == 1)
        assert post(s, "/shutdown").status_code == 202
        assert s.stop_requests == ["shutdown"]
        s.worker.drain()
        refused = execute(s)
        assert (refused.status_code, refused.json()["code"]) == (503, "SHUTTING_DOWN")
        assert HTTP.get(s.url + "/health").status_code == 200
        until(lambda: answers)
        assert events_of(answers[0].text)[-1][0] == "end"


@pytest.fixture
def client_of() -> Callable[[Serving], openai.OpenAI]:
    return lambda s: openai.OpenAI(base_url=s.url + "/v1", api_key="x", max_retries=0)


def test_the_official_client_completes_and_chats(
    client_of: Callable[[Serving], openai.OpenAI],
) -> None:
    with serving() as s, client_of(s) as client:
        model = client.models.list().data[0].id
        assert client.models.retrieve(model).id == "fake"
        whole = client.completions.create(model=model, prompt="x", max_tokens=5, seed=-1)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("hello", "length")
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 5
        stream = client.completions.create(model=model, prompt="x", max_tokens=5, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "hello"
        chat = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            stop="o",
            logprobs=True,
            top_logprobs=3,
        )
        assert chat.choices[0].message.content == "hell"
        assert chat.choices[0].finish_reason == "stop"
        logprobs = chat.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert len(logprobs.content[0].top_logprobs) == 3
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "x"}],
                max_completion_tokens=5,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(said) == "hello"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 6


def test_the_official_client_sees_errors_in_its_own_shape(
    client_of: Callable[[Serving], openai.OpenAI],
) -> None:
    with serving() as s, client_of(s) as client:
        with pytest.raises(openai.BadRequestError, match="n: only 1 is supported"):
            client.completions.create(model="fake", prompt="x", n=2)
        with pytest.raises(openai.NotFoundError, match="only 'fake' is served"):
            client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="fake", prompt="x", temperature=3)
        assert refused.value.param == "temperature"
