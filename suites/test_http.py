"""Gate 1: the HTTP surface of the engine."""

import json
from typing import Any

import pytest

from harness.clients.http import answer
from harness.launch import LaunchEngine, RunningEngine
from harness.launch.logs import lines_after
from harness.observation import Exchange, Observe
from harness.sse import TimedEvent

STORY = "Once upon a time, in a small village by the sea, there lived"
CORRELATION = "X-Correlation-Id"
LAST = "the.last-line"
"""Of a refusal that is narrated after the jobs: once its line has come, all of theirs have."""
HOSTILE_IDS = ("", "a" * 129, "two words", "<script>alert(1)</script>", "a;b", "../../etc", "é")
GREEDY: dict[str, Any] = {"prompt": STORY, "max_tokens": 12, "temperature": 0.0, "seed": 1}
SHORT: dict[str, Any] = {**GREEDY, "max_tokens": 2}


@pytest.mark.check("G1-HTTP-HEALTH")
def test_health_while_a_job_runs(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    idle = client.health()
    jobs: list[Exchange] = []
    probes: list[Exchange] = []
    while len(probes) < 400 and len(jobs) < 8:
        live = client.start(prompt=STORY, max_tokens=256, temperature=1.0, seed=len(jobs))
        live.wait_for("token", 30.0)
        while not live.done and len(probes) < 400:
            probes.append(client.health())
        jobs.append(live.finish(60.0))
    observe(idle=idle, jobs=jobs, probes=probes, model_sha256=engine.model_sha256)


@pytest.mark.check("G1-HTTP-EXECUTE")
def test_execute_streams(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    live = client.start(prompt=STORY, max_tokens=24, temperature=0.0, seed=1)
    execute = live.finish(60.0)
    ids = token_ids(live.events)
    observe(
        execute=execute,
        tokenize=client.tokenize(STORY, add_special=True),
        detokenize=client.detokenize(ids),
    )


@pytest.mark.check("G1-HTTP-EXECUTE")
def test_one_job_at_a_time(engine: RunningEngine, observe: Observe) -> None:
    live = [
        engine.client.start(prompt=STORY, max_tokens=48, temperature=1.0, seed=seed)
        for seed in range(3)
    ]
    observe(jobs=[one.finish(60.0) for one in live])


@pytest.mark.check("G1-HTTP-SSE")
def test_streams_are_well_formed(engine: RunningEngine, observe: Observe) -> None:
    requests: tuple[dict[str, Any], ...] = (
        {**GREEDY},
        {**GREEDY, "max_tokens": 1},
        {**GREEDY, "temperature": 1.0, "seed": 2**64 - 1},
        {**GREEDY, "logprobs": 0},
        {**GREEDY, "logprobs": 3, "job_id": "one of mine: ☃"},
        {**GREEDY, "stop": [" a", "."]},
        {**GREEDY, "prompt": "Write 🏳️‍🌈 and 日本語:", "temperature": 1.5},
    )
    observe(streams=[engine.client.execute(**request) for request in requests])


@pytest.mark.check("G1-HTTP-CORRELATION")
def test_correlation_ids(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    sent = [[], [(CORRELATION, "caller.id_1-A")], *([(CORRELATION, bad)] for bad in HOSTILE_IDS)]
    jobs = [
        client.execute(**{**SHORT, "job_id": f"corr-{number}"}, headers=headers)
        for number, headers in enumerate(sent)
    ]
    client.execute(**{**SHORT, "max_tokens": 0}, headers=[(CORRELATION, LAST)])
    lines = lines_after(engine, f'"{LAST}"')
    observe(
        jobs=jobs,
        probes=[
            client.raw("GET", "/health"),
            client.raw("GET", "/health", headers=[(CORRELATION, "another.id")]),
            client.raw("GET", "/metrics", headers=[(CORRELATION, "x" * 128)]),
        ],
        log_lines=[line for line in lines if '"corr-' in line],
    )


@pytest.mark.check("G1-E2E")
def test_a_hundred_repeats(engine: RunningEngine, observe: Observe) -> None:
    request = {**GREEDY, "max_tokens": 8}
    observe(
        runs=[engine.client.execute(**request) for _ in range(100)],
        other_prompt=engine.client.execute(**{**request, "prompt": "The capital of France is"}),
    )


@pytest.mark.check("G1-ERRORS")
def test_refusals(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    observe(
        invalid=client.execute(**{**GREEDY, "max_tokens": 0}),
        no_route=client.raw("GET", "/no/such/route"),
        wrong_method=client.raw("GET", "/execute"),
        too_large=client.raw("POST", "/execute", b'{"prompt":"' + b"x" * (1 << 20) + b'"}'),
        unknown_job=client.cancel("never-seen"),
    )


@pytest.mark.check("G1-ERRORS")
def test_duplicate_job(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    request = {**GREEDY, "max_tokens": 256, "job_id": "twin"}
    live = client.start(**request)
    live.wait_for("token", 30.0)
    second = client.execute(**request)
    first = live.finish(120.0)
    observe(first=first, second=second, afterwards=client.execute(**{**SHORT, "job_id": "twin"}))


@pytest.mark.check("G1-ERRORS")
def test_full_queue(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    running = client.start(prompt=STORY, max_tokens=320, temperature=1.0, seed=1)
    running.wait_for("token", 30.0)
    queued = [client.start(prompt="Hello", max_tokens=1, temperature=0.0) for _ in range(20)]
    observe(jobs=[running.finish(120.0), *(one.finish(60.0) for one in queued)])


@pytest.mark.check("G1-ERRORS")
def test_cancelled_event(engine: RunningEngine, observe: Observe) -> None:
    live = engine.client.start(job_id="to-cancel", prompt=STORY, max_tokens=512, seed=1)
    live.wait_for("token", 30.0)
    cancel = engine.client.cancel("to-cancel")
    observe(execute=live.finish(30.0), cancel=cancel)


@pytest.mark.check("G1-ERRORS")
def test_timeout_event(launch_engine: LaunchEngine, observe: Observe) -> None:
    client = launch_engine("--inference-timeout-s", "1", "--max-tokens-out", "65536").client
    room = answer(client.health())["context_length"] - len(STORY)
    observe(
        execute=client.execute(prompt=STORY, max_tokens=room, temperature=2.0, seed=3),
        afterwards=client.execute(**SHORT),
    )


def token_ids(events: list[TimedEvent]) -> list[int]:
    """The token ids of a stream, for asking the engine about them; judges decode anew."""
    return [json.loads(timed.event.data)["id"] for timed in events if timed.event.type == "token"]
