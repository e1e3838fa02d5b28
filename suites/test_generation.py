"""Gates 1 and 2: seeds, sampling parameters, stop sequences, the KV cache, repeats."""

import json
from typing import Any

import pytest

from harness.clients.http import LiveExchange
from harness.launch import LaunchEngine, RunningEngine
from harness.observation import Exchange, Observe

STORY = "Once upon a time, in a small village by the sea, there lived"
WARM: dict[str, Any] = {"prompt": STORY, "max_tokens": 24, "temperature": 1.0, "seed": 7}
GREEDY: dict[str, Any] = {**WARM, "temperature": 0.0}
SEEDS = range(100, 104)
KV_BUDGET_MB = 16


@pytest.mark.check("G1-RNG")
def test_same_seed(engine: RunningEngine, observe: Observe) -> None:
    observe(runs=[engine.client.execute(**WARM) for _ in range(3)])


@pytest.mark.check("G1-RNG")
def test_other_seeds(engine: RunningEngine, observe: Observe) -> None:
    observe(runs=[engine.client.execute(**{**WARM, "seed": seed}) for seed in SEEDS])


@pytest.mark.check("G1-RNG")
def test_omitted_seed(engine: RunningEngine, observe: Observe) -> None:
    drawn, replays = [], []
    unseeded = {name: value for name, value in WARM.items() if name != "seed"}
    for _ in range(2):
        live = engine.client.start(**unseeded)
        drawn.append(live.finish(60.0))
        replays.append(engine.client.execute(**WARM | {"seed": reported_seed(live)}))
    observe(drawn=drawn, replays=replays)


@pytest.mark.check("G1-SAMPLING")
def test_greedy(engine: RunningEngine, observe: Observe) -> None:
    observe(
        greedy=engine.client.execute(**{**GREEDY, "logprobs": 5}),
        top_k_1=engine.client.execute(**{**GREEDY, "temperature": 2.0, "top_k": 1}),
    )


@pytest.mark.check("G1-SAMPLING")
def test_top_k(engine: RunningEngine, observe: Observe) -> None:
    observe(**limited_and_free(engine, top_k=3))


@pytest.mark.check("G1-SAMPLING")
def test_top_p(engine: RunningEngine, observe: Observe) -> None:
    observe(**limited_and_free(engine, top_p=0.4))


@pytest.mark.check("G1-SAMPLING")
def test_min_p(engine: RunningEngine, observe: Observe) -> None:
    observe(**limited_and_free(engine, min_p=0.3))


@pytest.mark.check("G1-SAMPLING")
def test_repetition_penalty(engine: RunningEngine, observe: Observe) -> None:
    request = {**GREEDY, "prompt": "one two one two one two one two one two", "max_tokens": 32}
    observe(
        free=engine.client.execute(**{**request, "repetition_penalty": 1.0}),
        penalized=engine.client.execute(**{**request, "repetition_penalty": 1.8}),
    )


@pytest.mark.check("G1-SAMPLING")
def test_stop_sequences(engine: RunningEngine, observe: Observe) -> None:
    live = engine.client.start(**{**GREEDY, "max_tokens": 40})
    whole = live.finish(60.0)
    text = completion_of(live)
    stops = [[text[12:18]], [text[20:21]], ["~never~", text[30:38], text[24:28]]]
    request = {**GREEDY, "max_tokens": 40}
    observe(whole=whole, stopped=[engine.client.execute(**request, stop=stop) for stop in stops])


@pytest.mark.check("G1-SAMPLING")
def test_distribution(engine: RunningEngine, observe: Observe) -> None:
    request = {**WARM, "max_tokens": 1, "temperature": 1.5, "top_k": 20, "logprobs": 20}
    observe(runs=[engine.client.execute(**{**request, "seed": seed}) for seed in range(200)])


@pytest.mark.check("G1-KV")
def test_kv_grows(engine: RunningEngine, observe: Observe) -> None:
    engine.client.execute(**GREEDY)
    before = engine.client.health()
    runs = [
        engine.client.execute(**{**GREEDY, "prompt": STORY * times, "max_tokens": 4})
        for times in (1, 8, 30)
    ]
    observe(before=before, runs=runs, after=engine.client.health())


@pytest.mark.check("G1-KV")
def test_kv_budget(launch_engine: LaunchEngine, observe: Observe) -> None:
    client = launch_engine("--kv-cache-mb", str(KV_BUDGET_MB)).client
    observe(
        fitting=client.execute(**GREEDY),
        exceeding=client.execute(**{**GREEDY, "prompt": STORY * 100, "max_tokens": 512}),
        afterwards=client.execute(**GREEDY),
        budget_bytes=KV_BUDGET_MB << 20,
    )


@pytest.mark.check("G2-REPRODUCIBLE")
def test_twice_and_after_restart(launch_engine: LaunchEngine, observe: Observe) -> None:
    runs: list[list[Exchange]] = []
    pids = []
    for rounds in (2, 1):
        engine = launch_engine()
        pids.append((engine.process_facts() or {}).get("pid"))
        runs += [
            [engine.client.execute(**request) for request in REPRODUCED] for _ in range(rounds)
        ]
        engine.stop()
    observe(first=runs[0], second=runs[1], restarted=runs[2], pids=pids)


REPRODUCED: tuple[dict[str, Any], ...] = (
    {**GREEDY, "max_tokens": 48},
    {**GREEDY, "prompt": "The three laws of motion are", "max_tokens": 48},
    {**GREEDY, "prompt": STORY * 12, "max_tokens": 24},
)


def limited_and_free(engine: RunningEngine, **limit: Any) -> dict[str, list[Exchange]]:
    """The same sampled requests with and without one limit."""
    request = {**WARM, "logprobs": 20, "max_tokens": 32}
    return {
        "limited": [engine.client.execute(**{**request, **limit, "seed": s}) for s in SEEDS],
        "free": [engine.client.execute(**{**request, "seed": s}) for s in SEEDS],
    }


def reported_seed(live: LiveExchange) -> int:
    """The seed that the engine drew."""
    started = next(e.event for e in live.events if e.event.type == "started")
    return int(json.loads(started.data)["seed"])


def completion_of(live: LiveExchange) -> str:
    """The text so far."""
    return "".join(json.loads(e.event.data)["t"] for e in live.events if e.event.type == "token")
