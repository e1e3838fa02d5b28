"""Gates 1 and 3, on a CUDA device: what lies in its memory, and what the engine says of it."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from harness.clients.http import told_object
from harness.device_memory import held_by, read_gpus
from harness.launch import LaunchEngine, Launcher, LaunchSpec, RunningEngine
from harness.observation import Exchange, Json, Observe
from suites.probes import probe

STORY = "Once upon a time, in a small village by the sea, there lived"
LONG: dict[str, Any] = {"prompt": STORY * 16, "max_tokens": 1024, "temperature": 1.0}
ATTEMPTS = 5
"""A text may end by itself before anyone looked at the device."""
DEFAULT, TINY, SHAPE = "default", "tiny-llama", "qwen2.5-0.5b"
LARGE, LARGE_CONTEXT, LARGE_PROMPT, LARGE_ANSWER = "gpt-oss-20b", 8192, 7936, 256
CHECK_EVERY_S = 1
VIOLATION_S = 15.0
INSPECT_S = 60.0
DIGEST_S = 120.0

GenerateModel = Callable[[str], Path]


@pytest.mark.check("G1-CUDA-CONTEXT")
def test_one_context_on_the_chosen_device(engine: RunningEngine, observe: Observe) -> None:
    facts = engine.process_facts() or {}
    observe(
        health=engine.client.health(),
        processes=facts.get("processes"),
        gpus=[[gpu.index, sorted(gpu.processes)] for gpu in read_gpus()],
        visible=engine.spec.env.get("CUDA_VISIBLE_DEVICES"),
        model_sha256=engine.model_sha256,
    )


@pytest.mark.check("G1-CUDA-CONTEXT")
@pytest.mark.parametrize("device", ["cuda:99", "cuda:x"])
def test_wrong_device_is_refused(
    device: str, launcher: Launcher, launch_spec: LaunchSpec, observe: Observe
) -> None:
    args = (*launch_spec.args, "--device", device)
    observe(exit=asdict(launcher.run_to_exit(replace(launch_spec, args=args), 60.0)), device=device)


@pytest.mark.check("G1-CUDA-CONTEXT")
def test_every_allocation_is_plain(
    launcher: Launcher, launch_spec: LaunchSpec, observe: Observe
) -> None:
    observe(probe=probe(launcher, launch_spec, "cuda-memory", "--model", "{model}"))


@pytest.mark.check("G1-VRAM-ONLY")
@pytest.mark.parametrize("name", [DEFAULT, SHAPE])
def test_nothing_stays_in_host_memory(
    name: str, generated_model: GenerateModel, launch_engine: LaunchEngine, observe: Observe
) -> None:
    engine = launched(name, generated_model, launch_engine)
    idle = health_of(engine)
    during, device_bytes = while_running(engine, idle)
    observe(
        idle=idle,
        during=during,
        device_bytes=device_bytes,
        peak_rss_bytes=(engine.process_facts() or {}).get("peak_rss_bytes"),
        model_bytes=engine.model_path.stat().st_size,
        model_sha256=engine.model_sha256,
    )


@pytest.mark.check("G1-VRAM-RESIDENCY")
@pytest.mark.parametrize("fault", ["", "managed-pointer"], ids=["none", "managed-pointer"])
def test_residency_is_checked(fault: str, launch_engine: LaunchEngine, observe: Observe) -> None:
    env = {"HAIKUGATE_FAULT": fault} if fault else {}
    engine = launch_engine("--residency-check-s", str(CHECK_EVERY_S), env=env)
    first = engine.client.health()
    engine.client.execute(prompt=STORY, max_tokens=4, temperature=0.0)
    deadline = monotonic() + VIOLATION_S
    while len(residency_checks(engine)) < 2 and monotonic() < deadline:
        sleep(0.1)
    observe(
        first=first,
        last=engine.client.health(),
        log_lines=residency_checks(engine),
        fault=fault or "none",
        model_sha256=engine.model_sha256,
    )


@pytest.mark.check("G1-VRAM-TRACKING")
@pytest.mark.parametrize("name", [DEFAULT, SHAPE])
def test_reported_bytes(
    name: str, generated_model: GenerateModel, launch_engine: LaunchEngine, observe: Observe
) -> None:
    tiny, engine = (launched(one, generated_model, launch_engine) for one in (TINY, name))
    observe(
        tiny=health_of(tiny),
        tiny_device_bytes=device_bytes_of(tiny),
        health=health_of(engine),
        device_bytes=device_bytes_of(engine),
        model_sha256=engine.model_sha256,
    )


@pytest.mark.check("G3-24GB")
def test_gpt_oss_fits(
    generated_model: GenerateModel,
    launcher: Launcher,
    launch_spec: LaunchSpec,
    launch_engine: LaunchEngine,
    observe: Observe,
) -> None:
    model = generated_model(LARGE)
    planned = inspected(launcher, replace(launch_spec, model_path=model), LARGE_CONTEXT)
    engine = launch_engine("--context-length", str(LARGE_CONTEXT), model=model)
    idle = health_of(engine)
    ids = [1 + number % 1000 for number in range(LARGE_PROMPT)]
    answer = engine.client.start(prompt_ids=ids, max_tokens=LARGE_ANSWER, temperature=0.0)
    answer.wait_for("token", 60.0, 2)
    during = until(engine.client.health, lambda seen: kv_bytes(seen) > kv_bytes(idle))
    device_bytes = device_bytes_of(engine)
    observe(
        planned=planned,
        idle=idle,
        during=during,
        answer=answer.finish(60.0),
        device_bytes=device_bytes,
        model_sha256=engine.model_sha256,
    )


def residency_checks(engine: RunningEngine) -> list[str]:
    """The narration's lines about residency."""
    return [line for line in engine.log_lines() if "residency_check" in line]


def launched(
    name: str, generated_model: GenerateModel, launch_engine: LaunchEngine
) -> RunningEngine:
    """An engine with this model; the default is the model under test."""
    return launch_engine(model=None if name == DEFAULT else generated_model(name))


def inspected(launcher: Launcher, spec: LaunchSpec, context: int) -> Json:
    """The memory plan of a model file, which `inspect` works out of its header alone."""
    start = spec.command[: spec.command.index("serve")]
    command = (*start, "inspect", "--model", "{model}", "--context-length", str(context), "--json")
    ended = launcher.run_to_exit(replace(spec, command=command), INSPECT_S)
    return json.loads(ended.stdout)["memory"]


def device_bytes_of(engine: RunningEngine) -> int | None:
    """What the driver says that the engine's processes hold; None if it names none of them."""
    held = held_by((engine.process_facts() or {}).get("processes") or [])
    return sum(held.values()) if held else None


def while_running(engine: RunningEngine, idle: Exchange) -> tuple[Exchange, int | None]:
    """/health while a job decodes that holds KV bytes, and the device's bytes then."""
    for seed in range(ATTEMPTS):
        live = engine.client.start(**LONG, seed=seed, job_id=f"long-{seed}")
        live.wait_for("token", 60.0, 2)
        during = until(engine.client.health, lambda seen: kv_bytes(seen) > kv_bytes(idle))
        device_bytes = device_bytes_of(engine)
        engine.client.cancel(f"long-{seed}")
        live.finish(30.0)
        if kv_bytes(during) > kv_bytes(idle):
            break
    return during, device_bytes


def until(
    ask: Callable[[], Exchange], holds: Callable[[Exchange], bool], within_s: float = 2.0
) -> Exchange:
    """The first answer for which it holds, or the last in this time."""
    deadline = monotonic() + within_s
    while not holds(seen := ask()) and monotonic() < deadline:
        sleep(0.002)
    return seen


def health_of(engine: RunningEngine) -> Exchange:
    """/health once it tells the file's digest, which is computed beside the load."""
    has_digest = lambda seen: bool(told_object(seen).get("model_sha256"))  # noqa: E731
    return until(engine.client.health, has_digest, DIGEST_S)


def kv_bytes(seen: Exchange) -> int:
    """The KV bytes of a /health answer, for knowing when to stop asking."""
    return int(told_object(seen).get("kv_bytes", 0))
