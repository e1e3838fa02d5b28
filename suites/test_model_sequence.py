"""Gates 3 and 4: one model after the other is loaded, served by its adapter, and left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from harness.device_memory import unowned_bytes
from harness.launch import LaunchEngine, RunningEngine
from harness.launch.facts import process_facts
from harness.launch.logs import lines_after
from harness.observation import Json, Observe
from harness.profiles import Profile

DEFAULT = "default"
FAMILIES = {
    "tiny-llama": "G3-LLAMA",
    "tiny-qwen2": "G3-LLAMA",
    "tiny-phi3": "G3-LLAMA",
    "tiny-gpt2": "G3-GPT",
    "tiny-gpt-oss": "G3-GPT",
}
MODELS = (DEFAULT, *FAMILIES)
COUNT: dict[str, Any] = {"prompt": "Count to three", "max_tokens": 20, "temperature": 0.0}
TEXT = "Count to three: one, two, three.\n  Naïve 東京 👩‍👩‍👧"
N_REQUESTS, N_WARM = 50, 5
SETTLED_S, SETTLED_BYTES = 15.0, 16 << 20

GenerateModel = Callable[[str], Path]


def _marked(name: str) -> Any:
    family = FAMILIES.get(name)
    marks = [pytest.mark.check(family, "G3-FACTORY")] if family else []
    return pytest.param(name, marks=marks)


@pytest.mark.check(
    "G4-MODELS-LOAD",
    "G4-MODELS-GENERATE",
    "G4-MODELS-DETERMINISM",
    "G4-MODELS-ADAPTER",
    "G4-MODELS-TOKENIZER",
)
@pytest.mark.parametrize("name", [_marked(name) for name in MODELS])
def test_serves(
    name: str, generated_model: GenerateModel, launch_engine: LaunchEngine, observe: Observe
) -> None:
    engine = launched(name, generated_model, launch_engine)
    client = engine.client
    health = client.health()
    answers = [client.execute(**COUNT) for _ in range(3)]
    ids = json.loads(client.tokenize(TEXT).body)["ids"]
    completion = {"prompt": COUNT["prompt"], "max_tokens": 4, "temperature": 0.0}
    completion["model"] = json.loads(health.body)["model"]
    observe(
        health=health,
        answers=answers,
        tokenized=client.tokenize(TEXT),
        detokenized=client.detokenize(ids),
        completed=client.raw("POST", "/v1/completions", json.dumps(completion).encode()),
        log_lines=[line for line in lines_after(engine, '"ready"') if '"model_load' in line],
        model_sha256=engine.model_sha256,
        model_file=engine.model_path.name,
    )


@pytest.mark.check("G4-MODELS-CLEANUP")
@pytest.mark.parametrize("name", MODELS)
def test_leaves_nothing_behind(
    name: str,
    generated_model: GenerateModel,
    launch_engine: LaunchEngine,
    tmp_path: Path,
    profile: Profile,
    observe: Observe,
) -> None:
    baseline = device_bytes(profile)
    engine = launched(name, generated_model, launch_engine, TMPDIR=str(tmp_path))
    request = {"prompt": COUNT["prompt"], "max_tokens": 2, "temperature": 0.0}
    for _ in range(N_WARM):
        engine.client.execute(**request)
    before, memory_before = engine.process_facts() or {}, engine.client.health()
    requests = [engine.client.execute(**request) for _ in range(N_REQUESTS)]
    after, memory_after = engine.process_facts() or {}, engine.client.health()
    ended = engine.stop()
    observe(
        requests=requests,
        memory_before=memory_before,
        memory_after=memory_after,
        answer_after_stop=engine.client.health(),
        model_sha256=engine.model_sha256,
        anonymous_bytes=[before.get("anonymous_bytes"), after.get("anonymous_bytes")],
        processes=after.get("processes"),
        listening=after.get("listening"),
        device_bytes=None if baseline is None else [baseline, settled_bytes(baseline)],
        exit_code=ended.code,
        still_running=survivors(after.get("processes") or []),
        temporary_files=sorted(path.name for path in tmp_path.rglob("*")),
    )


def launched(
    name: str, generated_model: GenerateModel, launch_engine: LaunchEngine, **env: str
) -> RunningEngine:
    """An engine with this model; the default is the model under test."""
    model = None if name == DEFAULT else generated_model(name)
    return launch_engine(model=model, env=env)


def settled_bytes(baseline: int) -> int:
    """The same some time later: a driver takes its time with the memory of a process that ended."""
    deadline = monotonic() + SETTLED_S
    while (left := unowned_bytes()) > baseline + SETTLED_BYTES and monotonic() < deadline:
        pass
    return left


def device_bytes(profile: Profile) -> int | None:
    """Bytes on the GPUs that no living process holds; None in profile cpu.

    Other workers' engines come and go: what they hold is no business of this one's.
    """
    return None if profile.name == "cpu" else unowned_bytes()


def survivors(pids: list[int]) -> list[Json]:
    """Those of the processes that still run."""
    return [pid for pid in pids if process_facts(pid) is not None]
