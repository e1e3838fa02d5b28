"""Gate 4: narration: every event of an engine's life, and nothing of what clients said."""

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from harness.challenge import Challenge
from harness.clients.native import NativeClient
from harness.launch import LaunchEngine, Launcher, LaunchSpec, RunningEngine
from harness.launch.logs import lines_after
from harness.launch.process import free_port
from harness.observation import Exchange, Observe
from harness.transport import Endpoint

STORY = "Once upon a time, in a small village by the sea, there lived"
LETTERS = "bcdfghjklmnpqrstvwxz"
N_SPOKEN = 4
"""Words that the model is led to say: it loses a letter of one in 200, however often it is led."""


@pytest.mark.check("G4-NARRATION")
def test_every_event_is_narrated(launch_engine: LaunchEngine, observe: Observe) -> None:
    engine = launch_engine("--residency-check-s", "1")
    client = engine.client
    jobs = [client.execute(prompt=STORY, max_tokens=8, temperature=0.0, job_id="narrated")]
    refused = client.execute(prompt=STORY, max_tokens=0, job_id="refused")
    live = client.start(prompt=STORY, max_tokens=512, temperature=1.0, seed=1, job_id="cancelled")
    live.wait_for("token", 30.0)
    cancel = client.cancel("cancelled")
    cancelled = live.finish(30.0)
    lines_after(engine, '"residency_check"')
    engine.signal(signal.SIGTERM)
    observe(
        jobs=jobs,
        refused=refused,
        cancel=cancel,
        cancelled=cancelled,
        exit=asdict(engine.stop()),
        model_name=engine.model_path.name,
    )


@pytest.mark.check("G4-REDACTION")
def test_nothing_secret_is_said(
    launch_engine: LaunchEngine,
    launcher: Launcher,
    launch_spec: LaunchSpec,
    nonce: str,
    tmp_path: Path,
    observe: Observe,
) -> None:
    draw = Challenge(nonce, "G4-REDACTION").draw()
    words = {name: secret(draw) for name in ("prompt", "chat", "refused", "stop", "header", "path")}
    spoken = {f"spoken {number}": secret(draw) for number in range(1, N_SPOKEN + 1)}
    engine = launch_engine()
    answers = plant(engine, words)
    completions = [engine.client.execute(**repeating(draw, word)) for word in spoken.values()]
    words |= spoken
    exits = [asdict(engine.stop())]
    keys: list[str] = []
    keyed: list[Exchange] = []
    if launcher.kind == "process":  # a container does not see the key's file
        keys = [secret(draw), secret(draw)]
        exits.append(with_key(launcher, launch_spec, keys, tmp_path, keyed))
    seen = {"keyed": keyed} if keyed else {}
    observe(answers=answers, completions=completions, words=words, keys=keys, exits=exits, **seen)


def secret(draw: random.Random) -> str:
    """A word that no log can hold by chance."""
    return "".join(draw.choice(LETTERS) for _ in range(16))


def plant(engine: RunningEngine, words: dict[str, str]) -> list[Exchange]:
    """Requests that carry a canary wherever a client can write."""
    client, few = engine.client, {"max_tokens": 4, "temperature": 0.0}
    raw = words["refused"].encode()
    return [
        client.execute(prompt=f"The word is {words['prompt']}.", **few),
        client.execute(messages=[{"role": "user", "content": f"Say {words['chat']}"}], **few),
        client.execute(prompt=STORY, stop=[words["stop"]], **few),
        client.execute(prompt=words["refused"], max_tokens=0),
        client.execute(prompt=STORY, **{words["refused"]: 1}),
        client.raw("POST", "/execute", b'{"prompt": "' + raw),
        client.raw("POST", "/tokenize", b'{"text": "' + raw + b'"}'),
        client.raw("GET", "/health", headers=[("X-Correlation-Id", f"<{words['header']}>")]),
        client.raw("GET", "/health", headers=[("X-Canary", words["header"])]),
        client.raw("GET", f"/{words['path']}?{words['path']}={words['path']}"),
    ]


def repeating(draw: random.Random, word: str) -> dict[str, Any]:
    """A prompt whose continuation is its own word, repeated so often that a model goes on."""
    lines = f"{word}\n" * draw.randint(20, 28)
    return {"prompt": lines, "max_tokens": 40, "temperature": 0.0}


def with_key(
    launcher: Launcher, spec: LaunchSpec, keys: list[str], folder: Path, keyed: list[Exchange]
) -> dict[str, Any]:
    """An engine that wants the first of the keys, asked with either; how it ended."""
    file, port = folder / "key", free_port()
    file.write_text(keys[0] + "\n")
    file.chmod(0o600)
    args = (*spec.args, "--api-key-file", str(file), "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    right, wrong = (NativeClient(Endpoint(url, api_key=key)) for key in keys)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(launcher.run_to_exit, replace(spec, args=args), 60.0)
        while not right.is_ready() and not ended.done():
            sleep(0.05)
        keyed += [wrong.health(), right.health(), wrong.shutdown(), right.shutdown()]
        return asdict(ended.result())
