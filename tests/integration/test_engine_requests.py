"""What a request may say, and what its answer holds, at and past every bound."""

import json
import random
import uuid
from typing import Any

import pytest

from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from tests.integration.engine_process import MODEL, EngineProcess, Stream, text_of, wait_until

VOCAB, CONTEXT = 49_152, 8192
ENDS_SOON = [" ", "\n", ".", "e"]
SURROGATE = b'{"text": "\\ud800", "job_id": "\\udc00"}'
USER = {"role": "user", "content": "x"}

GOOD: list[dict[str, Any]] = [
    {"job_id": "x" * 256}, {"job_id": "ü/\n"}, {"prompt": "y" + " " * 32_767},
    {"prompt": "Once", "max_tokens": 2048, "stop": ENDS_SOON},
    {"temperature": 0.0}, {"temperature": 2.0}, {"temperature": 1}, {"top_p": 1.0}, {"top_p": 1e-6},
    {"top_k": 0}, {"top_k": VOCAB}, {"min_p": 0.0}, {"min_p": 1.0}, {"repetition_penalty": 2.0},
    {"repetition_penalty": 0.01}, {"stop": []}, {"stop": [" ".join("a" * 32)]},
    {"stop": ["a", "b", "c", "d"]}, {"seed": 0}, {"seed": 2**64 - 1}, {"logprobs": False},
    {"logprobs": 0}, {"logprobs": 20}, {"cache_prompt": True}, {"prompt_ids": [0, VOCAB - 1]},
    {"messages": [USER]}, {"messages": [{"role": "system", "content": ""}, USER]},
]  # fmt: skip
BAD: list[tuple[str, dict[str, Any]]] = [
    ("job_id", {"job_id": ""}), ("job_id", {"job_id": "x" * 257}), ("job_id", {"job_id": 1}),
    ("job_id", {"job_id": None}), ("prompt", {"prompt": ""}), ("prompt", {"prompt": "x" * 32_769}),
    ("prompt", {"prompt": 7}), ("prompt", {"prompt": None}), ("prompt", {"prompt_ids": [1]}),
    ("prompt", {"messages": [USER]}), ("prompt_ids", {"prompt": None, "prompt_ids": []}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [VOCAB]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [-1]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": ["1"]}),
    ("messages", {"prompt": None, "messages": []}),
    ("messages", {"prompt": None, "messages": [{"role": "robot", "content": "x"}]}),
    ("messages", {"prompt": None, "messages": [{"role": "user"}]}),
    ("messages", {"prompt": None, "messages": [{**USER, "more": 1}]}),
    ("max_tokens", {"max_tokens": 0}), ("max_tokens", {"max_tokens": 2049}),
    ("max_tokens", {"max_tokens": 1.5}), ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_tokens": "1"}),
    ("temperature", {"temperature": -0.01}), ("temperature", {"temperature": 2.01}),
    ("temperature", {"temperature": "hot"}), ("top_p", {"top_p": 0.0}), ("top_p", {"top_p": 1.01}),
    ("top_k", {"top_k": -1}), ("top_k", {"top_k": VOCAB + 1}), ("min_p", {"min_p": -0.1}),
    ("min_p", {"min_p": 1.1}), ("repetition_penalty", {"repetition_penalty": 0.0}),
    ("repetition_penalty", {"repetition_penalty": 2.1}), ("stop", {"stop": ["a"] * 5}),
    ("stop", {"stop": [" ".join("a" * 33)]}), ("stop", {"stop": [""]}), ("stop", {"stop": "x"}),
    ("seed", {"seed": -1}), ("seed", {"seed": 2**64}), ("seed", {"seed": 1.0}),
    ("logprobs", {"logprobs": 21}), ("logprobs", {"logprobs": -1}),
    ("logprobs", {"logprobs": True}), ("logprobs", {"logprobs": 0.0}),
    ("cache_prompt", {"cache_prompt": 1}), ("analysis", {"analysis": True}),
    ("surprise", {"surprise": 1}),
]  # fmt: skip


def test_each_bound_is_accepted(engine: EngineProcess) -> None:
    for fields in GOOD:
        sources = ("prompt", "prompt_ids", "messages")
        source = {} if any(name in fields for name in sources) else {"prompt": "x"}
        events = engine.execute(**({"max_tokens": 1} | source | fields))
        assert events[0][0] == "started", fields
        assert events[-1][0] == "end", fields


def test_what_is_past_a_bound_is_refused_by_name(engine: EngineProcess) -> None:
    for field, fields in BAD:
        body = {"job_id": "bad", "prompt": "x", "max_tokens": 1, **fields}
        answer = engine.client.post("/execute", json=body)
        said = answer.json()
        assert (answer.status_code, said.get("field")) == (400, field), (fields, said)
        assert (said["code"], said["retriable"]) == ("INVALID_REQUEST", False)
        assert set(said) == {"code", "message", "field", "retriable"}
        assert said["message"].startswith(field)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"a": 1}x', b"\xff", b'"x"', SURROGATE]
)
def test_what_is_no_json_object_is_refused(engine: EngineProcess, content: bytes) -> None:
    for path in ("/execute", "/cancel", "/tokenize", "/detokenize", "/score"):
        answer = engine.client.post(path, content=content)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_by_name(engine: EngineProcess, number: str) -> None:
    body = '{"job_id": "a", "prompt": "x", "temperature": ' + number + "}"
    answer = engine.client.post("/execute", content=body)
    assert (answer.status_code, answer.json()["field"]) == (400, "temperature")


def test_the_whole_context_may_be_asked_for(engine: EngineProcess) -> None:
    job = Stream(engine, job_id="whole", prompt_ids=[5] * (CONTEXT - 1), max_tokens=1)
    assert job.status == 200
    job.leave()


def test_beyond_the_context_both_numbers_are_named(engine: EngineProcess) -> None:
    body = {"job_id": "a", "prompt_ids": [5] * 7000, "max_tokens": 1193}
    answer = engine.client.post("/execute", json=body)
    assert answer.status_code == 400
    assert "7000" in answer.json()["message"]
    assert "8192" in answer.json()["message"]


def test_stop_strings_across_token_borders_are_never_shown(engine: EngineProcess) -> None:
    asked = {"prompt": "The capital of France is", "max_tokens": 14}
    events = engine.execute(**asked)
    whole = text_of(events)
    at, borders = 0, []
    for name, fields in events:
        if name == "token" and 0 < at < len(whole) - 1:
            borders.append(at)
        at += len(fields.get("t", ""))
    assert len(borders) >= 8
    for border in borders[::2]:
        stop = whole[border - 1 : border + 2]
        cut = engine.execute(**asked, stop=["never said", stop])
        assert text_of(cut) == whole.partition(stop)[0], stop
        assert cut[-1][1]["finish_reason"] == "stop_sequence"
        assert cut[-2][0] == "metrics"


def test_events_come_in_order_with_all_their_fields(engine: EngineProcess) -> None:
    events = engine.execute(job_id="fields", prompt="One two three", max_tokens=5, seed=3)
    assert [name for name, _ in events] == ["started", *["token"] * 5, "metrics", "end"]
    started, *tokens, metrics, end = (fields for _, fields in events)
    assert set(started) == {
        "job_id", "model", "started_at", "seed", "prompt_tokens", "cached_tokens",
    }  # fmt: skip
    assert (started["job_id"], started["seed"], started["model"]) == ("fields", 3, MODEL.stem)
    assert [set(token) for token in tokens] == [{"t", "i", "id"}] * 5
    assert [token["i"] for token in tokens] == list(range(5))
    assert set(metrics) == {"prefill_ms", "decode_ms", "tokens_out", "kv_cache_bytes"}
    assert metrics["kv_cache_bytes"] > 0
    assert set(end) == {"tokens_out", "decode_time_ms", "finish_reason", "dropped_bytes"}
    assert (end["tokens_out"], end["finish_reason"]) == (5, "length")


@pytest.mark.parametrize("wanted", [0, 1, 20])
def test_logprobs_are_the_models_own_best_first(engine: EngineProcess, wanted: int) -> None:
    for temperature in (0.0, 1.0):
        events = engine.execute(
            prompt="The", max_tokens=4, logprobs=wanted, temperature=temperature, seed=2
        )
        for token in (fields for name, fields in events if name == "token"):
            top = token["top"]
            assert len(top) == wanted
            assert [one["logprob"] for one in top] == sorted(
                (one["logprob"] for one in top), reverse=True
            )
            assert all(one["logprob"] <= 0 for one in [token, *top])
            assert all(
                one["logprob"] == token["logprob"] for one in top if one["id"] == token["id"]
            )
            if wanted and temperature == 0.0:
                assert top[0]["id"] == token["id"]


def test_streams_of_wild_tokens_are_the_whole_characters_of_their_bytes(
    engine: EngineProcess,
) -> None:
    """The oracle is Python's own decoder; nothing may become U+FFFD that was none."""
    with GGUFFile.open(MODEL) as file:
        tokenizer = Tokenizer.from_file(file)
    dropped = 0
    for seed in range(12):
        events = engine.execute(prompt="🜁☃é", max_tokens=24, temperature=2.0, seed=seed)
        ids = [fields["id"] for name, fields in events if name == "token"]
        spelled = b"".join(map(tokenizer.token_bytes, ids))
        text = text_of(events)
        assert text == spelled.decode(errors="ignore")
        detokenized = engine.client.post("/detokenize", json={"ids": ids}).json()
        assert detokenized["text"] == text
        assert detokenized["dropped_bytes"] == events[-1][1]["dropped_bytes"]
        assert len(text.encode()) + detokenized["dropped_bytes"] == len(spelled)
        dropped += detokenized["dropped_bytes"]
    assert dropped > 0, "wild enough to break characters"


def test_characters_split_at_every_byte_come_whole(engine: EngineProcess) -> None:
    with GGUFFile.open(MODEL) as file:
        tokenizer = Tokenizer.from_file(file)
    one_byte = {tokenizer.token_bytes(i): i for i in range(VOCAB - 1, -1, -1)}
    for character in ("é", "€", "😀", "a😀é", "\ufffd"):
        ids = [one_byte[bytes([byte])] for byte in character.encode()]
        told = engine.client.post("/detokenize", json={"ids": ids}).json()
        assert told == {"text": character, "dropped_bytes": 0}
        cut = engine.client.post("/detokenize", json={"ids": ids[:-1]}).json()
        assert cut["text"] == character.encode()[:-1].decode(errors="ignore")
        assert "\ufffd" not in cut["text"]


def test_tokenize_and_detokenize_are_inverse(engine: EngineProcess) -> None:
    draw = random.Random(1)
    for _ in range(30):
        text = "".join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(0x4E00, 0x9FFF)]))
                       for _ in range(40))  # fmt: skip
        ids = engine.client.post("/tokenize", json={"text": text}).json()["ids"]
        assert engine.client.post("/detokenize", json={"ids": ids}).json()["text"] == text
    assert engine.client.post("/tokenize", json={"text": ""}).json() == {"ids": []}
    outside = engine.client.post("/detokenize", json={"ids": [VOCAB]})
    assert (outside.status_code, outside.json()["field"]) == (400, "ids")


@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
@pytest.mark.parametrize("way", ["cancel", "disconnect"])
def test_a_job_ends_in_each_phase_and_gives_its_memory_back(
    engine: EngineProcess, phase: str, way: str
) -> None:
    kept_bytes = engine.client.get("/health").json()["kv_bytes"]
    long = {"prompt": "Count:", "max_tokens": 2048, "temperature": 1.0, "seed": 1}
    if phase == "prefill":
        long |= {"prompt": "x y z " * 2600, "max_tokens": 16}
    first = Stream(engine, job_id=f"{way}-{phase}", **long)
    jobs = [first]
    if phase == "queue":
        jobs.append(Stream(engine, job_id=f"{way}-{phase}-2", **long))
    wanted = "event: started" if phase == "prefill" else "event: token"
    wait_until(lambda: wanted in first.text)
    target = jobs[-1]
    for job in reversed(jobs):
        if way == "disconnect":
            job.leave()
        else:
            answer = engine.client.post("/cancel", json={"job_id": job.job_id})
            assert answer.status_code == 202
            assert job.ending[1]["code"] == "CANCELLED"
            again = engine.client.post("/cancel", json={"job_id": job.job_id})
            assert again.status_code == 202

    def told() -> set[str]:
        return {line["job_id"] for line in engine.events("cancel")}

    wait_until(lambda: {job.job_id for job in jobs} <= told())
    wait_until(lambda: engine.client.get("/health").json()["kv_bytes"] == kept_bytes)
    assert ("event: token" in target.text) is (phase == "decode")


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 128])
def test_a_correlation_id_is_on_the_answer_and_each_line(engine: EngineProcess, given: str) -> None:
    headers = {"x-correlation-id": given}
    body = {"job_id": f"correlated {given}", "prompt": "x", "max_tokens": 1}
    answer = engine.client.post("/execute", json=body, headers=headers)
    assert answer.headers["x-correlation-id"] == given
    lines = [line for line in engine.lines if line.get("job_id") == body["job_id"]]
    assert [line["event"] for line in lines] == ["execute_start", "execute_end"]
    assert {line["correlation_id"] for line in lines} == {given}


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\xff", b"{}", b"a;b"])
def test_another_correlation_id_is_replaced(engine: EngineProcess, given: bytes) -> None:
    for path in ("/health", "/nowhere"):
        answer = engine.client.get(path, headers={b"x-correlation-id": given})
        assert uuid.UUID(answer.headers["x-correlation-id"])


def test_routes_and_methods_that_are_not_there(engine: EngineProcess) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/execute", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/health/", 404, "NOT_FOUND"),
    ):
        answer = engine.client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_health_tells_what_runs(engine: EngineProcess) -> None:
    wait_until(lambda: engine.client.get("/health").json()["model_sha256"])
    health = engine.client.get("/health").json()
    with GGUFFile.open(MODEL) as file:
        assert health["quant_kind"] == file.quant_kind
    assert health["vocab_size"] == VOCAB
    assert health["context_length"] == CONTEXT
    assert (health["status"], health["resident"]) == ("healthy", True)
    assert (health["device"], health["backend"], health["kv_dtype"]) == ("cpu", "cpu", "f32")
    assert (health["tokenizer_kind"], health["adapter"]) == ("gguf-bpe", "LlamaAdapter")
    assert len(health["model_sha256"]) == 64
    parts = ("weights_bytes", "kv_bytes", "workspace_bytes")
    assert health["vram_bytes_used"] == sum(health[part] for part in parts)
    assert uuid.UUID(health["worker_id"])
    assert json.dumps(health["version"])


def test_metrics_count_what_happened(engine: EngineProcess) -> None:
    def read() -> dict[str, float]:
        lines = engine.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    before = read()
    assert engine.execute(prompt="Once", max_tokens=7)[-1][1]["tokens_out"] == 7
    engine.client.get("/nowhere")
    after = read()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["worker_tokens_generated_total"] == 7
    assert grown['worker_requests_total{outcome="ok"}'] == 1
    assert grown['worker_requests_total{outcome="refused"}'] == 1
    assert grown["worker_inference_duration_seconds_count"] == 1
    assert grown["worker_ttft_seconds_count"] == 1
    assert grown["worker_uptime_seconds"] > 0
    assert after["worker_vram_bytes"] == engine.client.get("/health").json()["vram_bytes_used"]
