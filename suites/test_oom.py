"""Gate 4: out of memory: at start, and in the midst of a stream that outgrows the KV budget."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.device_memory import held_by
from harness.launch import LaunchEngine, Launcher, LaunchSpec, RunningEngine
from harness.observation import Exchange, Json, Observe
from harness.vram_hog import vram_hog

STORY = "Once upon a time, in a small village by the sea, there lived"
KV_MIB = 8
LEFT_MIB = (12, 20, 28, 36, 44, 60)
"""What the hog leaves: some KV pages, and what a driver counts as free and does not give."""
EXHAUSTING_TOKENS = 2000
PROBE: dict[str, Any] = {"prompt": STORY, "max_tokens": 12, "temperature": 0.0, "seed": 1}

exhaustion = pytest.mark.check(
    "G4-OOM-KV",
    "G4-OOM-MESSAGE",
    "G4-OOM-ALIVE",
    "G4-OOM-RECOVERS",
    "G4-OOM-EVENT",
    "G4-OOM-HEALTH",
)
"""What a stream that runs out of memory shows, whoever took the memory."""


@pytest.mark.check("G4-OOM-LOAD")
@pytest.mark.parametrize("share", ["half", "almost"])
def test_model_does_not_fit(
    share: str, launcher: Launcher, launch_spec: LaunchSpec, observe: Observe
) -> None:
    model_bytes = launch_spec.model_path.stat().st_size
    limit_mib = int(model_bytes * {"half": 0.5, "almost": 0.95}[share]) >> 20
    args = (*launch_spec.args, "--memory-limit-mb", str(limit_mib))
    ended = launcher.run_to_exit(replace(launch_spec, args=args), 60.0)
    observe(
        exit=asdict(ended),
        limit_bytes=limit_mib << 20,
        model_bytes=model_bytes,
        model_name=launch_spec.model_path.name,
    )


@exhaustion
def test_kv_budget_exhausted(launch_engine: LaunchEngine, observe: Observe) -> None:
    engine = launch_engine("--kv-cache-mb", str(KV_MIB), "--inference-timeout-s", "120")
    client = engine.client
    before, at_first = client.execute(**PROBE), leader(engine)
    idle = client.health()
    long = exhaust(engine)
    sick = client.health()
    after = client.execute(**PROBE)
    observe(
        before=before,
        idle=idle,
        long=long,
        sick=sick,
        after=after,
        recovered=client.health(),
        second=client.execute(**PROBE),
        at_first=at_first,
        at_last=leader(engine),
        kv_limit_bytes=KV_MIB << 20,
        model_sha256=engine.model_sha256,
    )


@pytest.mark.check("G4-OOM-LOAD")
@pytest.mark.usefixtures("alone_on_gpu")
def test_device_is_full(
    generated_model: Callable[[str], Path],
    launch_engine: LaunchEngine,
    launcher: Launcher,
    launch_spec: LaunchSpec,
    observe: Observe,
) -> None:
    """Another process leaves what an engine needs without a model, and half of this model."""
    tiny = launch_engine(model=generated_model("tiny-llama"))
    held = held_by((tiny.process_facts() or {}).get("processes") or [])
    reported = int(json.loads(tiny.client.health().body)["vram_bytes_used"])
    tiny.stop()
    model_bytes = launch_spec.model_path.stat().st_size
    left_bytes = sum(held.values()) - reported + model_bytes // 2
    with vram_hog(left_bytes) as hog:
        ended = launcher.run_to_exit(launch_spec, 60.0)
    observe(
        exit=asdict(ended),
        left_bytes=hog["free_bytes"],
        held_by_another=hog["held_bytes"],
        model_bytes=model_bytes,
        model_name=launch_spec.model_path.name,
    )


@exhaustion
@pytest.mark.usefixtures("alone_on_gpu")
def test_device_exhausted_by_another(launch_engine: LaunchEngine, observe: Observe) -> None:
    """A real process takes all of the device's memory but a few pages, while jobs run.

    It leaves more and more, until a job gets past its first token.
    """
    engine = launch_engine("--inference-timeout-s", "120")
    client = engine.client
    before, at_first = client.execute(**PROBE), leader(engine)
    idle = client.health()
    for left_mib in LEFT_MIB:
        with vram_hog(left_mib << 20) as hog:
            long = exhaust(engine)
            sick = client.health()
            after = client.execute(**PROBE)
            recovered = client.health()
        if any(b"event: token" in seen.body for seen in long):
            break
    observe(
        before=before,
        idle=idle,
        long=long,
        sick=sick,
        after=after,
        recovered=recovered,
        second=client.execute(**PROBE),
        at_first=at_first,
        at_last=leader(engine),
        kv_limit_bytes=hog["free_bytes"],
        held_by_another=hog["held_bytes"],
        model_sha256=engine.model_sha256,
    )


def exhaust(engine: RunningEngine) -> list[Exchange]:
    """Streams that outgrow the budget, until two did: a text may end by itself before."""
    long: list[Exchange] = []
    while len(long) < 8 and sum(b"event: error" in seen.body for seen in long) < 2:
        long.append(
            engine.client.execute(
                prompt=STORY, max_tokens=EXHAUSTING_TOKENS, temperature=1.0, seed=len(long)
            )
        )
    return long


def leader(engine: RunningEngine) -> Json:
    """Which process serves, and since when."""
    facts = engine.process_facts() or {}
    return {name: facts.get(name) for name in ("pid", "create_time")}
