"""Gate 3: one interface of adapters, the factory's answer to strangers, one model for life."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.launch import Launcher, LaunchSpec, RunningEngine
from harness.observation import Observe
from suites.probes import probe

STRANGERS = {"unknown": b"mamba", "capitals": b"LLAMA", "similar": b"llam2"}
ARCHITECTURE_KEY = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0"


@pytest.mark.check("G3-INTERFACE")
def test_interface(launcher: Launcher, launch_spec: LaunchSpec, observe: Observe) -> None:
    observe(probe=probe(launcher, launch_spec, "adapters"))


@pytest.mark.check("G3-DETECT")
@pytest.mark.parametrize("case", STRANGERS)
def test_strange_architecture(
    case: str,
    generated_model: Callable[[str], Path],
    launcher: Launcher,
    launch_spec: LaunchSpec,
    tmp_path: Path,
    observe: Observe,
) -> None:
    content = generated_model("tiny-llama").read_bytes()
    start, _, rest = content.partition(ARCHITECTURE_KEY + b"llama")
    model = tmp_path / "model.gguf"
    model.write_bytes(start + ARCHITECTURE_KEY + STRANGERS[case] + rest)
    ended = launcher.run_to_exit(replace(launch_spec, model_path=model), 60.0)
    observe(
        exit=asdict(ended),
        architecture=STRANGERS[case].decode(),
        changed=bool(rest),
    )


LOADS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/load", {"model": "other.gguf"}),
    ("POST", "/models/load", {"model": "other.gguf"}),
    ("PUT", "/model", {"path": "other.gguf"}),
    ("POST", "/v1/models", {"model": "other"}),
    ("DELETE", "/v1/models/other", {}),
    ("POST", "/execute", {"job_id": "load", "prompt": "Hello", "model": "other.gguf"}),
    ("POST", "/v1/completions", {"model": "other", "prompt": "Hello", "max_tokens": 1}),
)


@pytest.mark.check("G3-SINGLE-MODEL")
def test_no_second_model(engine: RunningEngine, observe: Observe) -> None:
    request = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0.0}
    client = engine.client
    observe(
        health=client.health(),
        first=client.execute(**request),
        loads=[client.raw(method, path, json.dumps(sent).encode()) for method, path, sent in LOADS],
        again=client.execute(**request),
        afterwards=client.health(),
        model_sha256=engine.model_sha256,
    )
