"""Gate 4: the same request gives the same bits, whatever ran before, beside or since."""

from time import sleep
from typing import Any

import pytest

from harness.clients.http import told_ids
from harness.judges.stream import read_or_nothing
from harness.launch import LaunchEngine, RunningEngine
from harness.observation import Exchange, Observe

STORY = "Once upon a time, in a small village by the sea, there lived"
SAMPLED: dict[str, Any] = {
    "prompt": STORY,
    "max_tokens": 6,
    "temperature": 0.9,
    "seed": 11,
    "logprobs": 3,
}
REPEATS = 100
REPEATED: dict[str, Any] = {**SAMPLED, "max_tokens": 32}
"""Long enough for a deviation that depends on the position."""
LONG: dict[str, Any] = {**SAMPLED, "prompt": STORY * 16, "max_tokens": 8}
REQUESTS: tuple[dict[str, Any], ...] = (
    {**SAMPLED, "temperature": 0.0, "max_tokens": 24},
    {**SAMPLED, "temperature": 1.3, "max_tokens": 24},
    LONG,
)
ENDLESS: dict[str, Any] = {"prompt": STORY, "max_tokens": 1024, "temperature": 1.0, "seed": 5}
"""Holds the engine until it is cancelled, however fast that is."""
OTHERS: tuple[dict[str, Any], ...] = (
    {"prompt": "The three laws of motion are", "max_tokens": 12, "temperature": 0.0},
    {"prompt": STORY * 20, "max_tokens": 4, "temperature": 1.0, "cache_prompt": True},
    {"prompt": STORY, "max_tokens": 12, "temperature": 2.0, "seed": 11},
    {"prompt": "x", "max_tokens": 1, "temperature": 0.0, "stop": ["never"]},
)


@pytest.mark.check("G4-DETERMINISM-REPEAT")
def test_repeats_are_bitwise_equal(engine: RunningEngine, observe: Observe) -> None:
    observe(runs=[engine.client.execute(**REPEATED) for _ in range(REPEATS)])


@pytest.mark.check("G4-DETERMINISM-RESTART")
def test_a_restart_changes_nothing(launch_engine: LaunchEngine, observe: Observe) -> None:
    runs: list[list[Exchange]] = []
    processes = []
    for _ in range(2):
        engine = launch_engine()
        facts = engine.process_facts() or {}
        processes.append([facts.get("pid"), facts.get("create_time")])
        runs.append([engine.client.execute(**request) for request in REQUESTS])
        engine.stop()
    observe(before=runs[0], after=runs[1], processes=processes)


@pytest.mark.check("G4-DETERMINISM-ORDER")
def test_others_change_nothing(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    runs = [client.execute(**SAMPLED)]
    others = []
    for other in OTHERS:
        others.append(client.execute(**other))
        runs.append(client.execute(**SAMPLED))
    observe(runs=runs, others=others)


@pytest.mark.check("G4-DETERMINISM-ORDER")
def test_queue_positions_change_nothing(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    runs, others = [client.execute(**SAMPLED)], []
    holders = []
    for position in range(1, 5):
        holder = client.start(**ENDLESS, job_id=f"holder-{position}")
        holder.wait_for("token", 30.0)
        ahead = []
        for other in (*OTHERS[: position - 1], SAMPLED):
            ahead.append(client.start(**other))
            ahead[-1].wait_connected(10.0)
            sleep(0.03)
        client.cancel(f"holder-{position}")
        holders.append(holder.finish(30.0))
        runs.append(ahead.pop().finish(60.0))
        others += [one.finish(60.0) for one in ahead]
    observe(runs=runs, others=others, holders=holders)


@pytest.mark.check("G4-DETERMINISM-CACHE")
def test_cache_prompt_changes_nothing(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    longer = {**LONG, "prompt": LONG["prompt"] + " And then, one grey morning, a ship came."}
    requests = (LONG, longer, {**longer, "temperature": 0.0})
    observe(
        plain=[client.execute(**request) for request in requests],
        cached=[
            client.execute(**request, cache_prompt=True) for _ in range(2) for request in requests
        ],
        plain_again=[client.execute(**request) for request in requests],
    )


@pytest.mark.check("G4-DETERMINISM-PREFILL-DECODE")
def test_prefill_agrees_with_decode(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    streams, prompts, scores = [], [], []
    for request in REQUESTS:
        live = client.start(**{**request, "logprobs": 20})
        streams.append(live.finish(60.0))
        prompts.append(client.tokenize(request["prompt"], add_special=True))
        scores.append(client.score(told_ids(prompts[-1]), read_or_nothing(streams[-1]).ids))
    observe(streams=streams, prompts=prompts, scores=scores)


@pytest.mark.check("G4-DETERMINISM-CONTROL")
def test_other_seeds_differ(engine: RunningEngine, observe: Observe) -> None:
    request = {"prompt": STORY, "max_tokens": 24, "temperature": 1.0}
    observe(runs=[engine.client.execute(**request, seed=seed) for seed in range(40, 46)])
