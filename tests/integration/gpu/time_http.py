"""What HTTP, SSE and Python add to a token: `/execute` beside `bench`, in turn, one line a model.

Usage: `python -m tests.integration.gpu.time_http MODEL.gguf [...] [--device cuda:0]`.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import median

from harness.baseline import timing_of
from harness.clients.http import told_object
from harness.launch import LaunchSpec, RunningEngine
from harness.launch.process import ProcessLauncher
from harness.metrics import RequestTiming, decode_tokens_per_s

PROMPT_TOKENS, ANSWER_TOKENS = 32, 128
ENGINE = (sys.executable, "-m", "engine.cli")


def main(arguments: list[str]) -> None:
    """Print a JSON line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--requests", type=int, default=30)
    given = parser.parse_args(arguments)
    for model in given.models:
        print(json.dumps(measured(model, given.device, given.requests)), flush=True)


def measured(model: Path, device: str, requests: int) -> dict[str, object]:
    """One model's numbers; what HTTP adds is in percent of `bench`'s time a token."""
    bench = benched(model, device)
    command = (*ENGINE, "serve", "--model", "{model}", "--port", "{port}", "--device", device)
    engine = ProcessLauncher().launch(LaunchSpec(command, model))
    try:
        greedy = served(engine, requests, temperature=0.0)
        drawn = served(engine, requests, temperature=1.0)
    finally:
        engine.stop()
    rate = median(filter(None, map(decode_tokens_per_s, greedy)))
    first_ms = sorted(one.ttft_ms for one in (*greedy, *drawn) if one.ttft_ms is not None)
    return {
        "model": model.name,
        "bench_tokens_per_s": round(bench, 1),
        "http_tokens_per_s": round(rate, 1),
        "http_drawn_tokens_per_s": round(median(filter(None, map(decode_tokens_per_s, drawn))), 1),
        "http_adds_percent": round(100 * (bench / rate - 1), 2),
        "ttft_ms": [round(one, 2) for one in (median(first_ms), first_ms[-1])],
    }


def benched(model: Path, device: str) -> float:
    """`bench`'s tokens a second of decoding after a prompt as long as the requests'."""
    sizes = (f"-p{PROMPT_TOKENS}", f"-n{ANSWER_TOKENS}", f"-d{PROMPT_TOKENS}")
    command = (*ENGINE, "bench", "-m", str(model), "--device", device, *sizes, "--json")
    ended = subprocess.run(command, check=True, capture_output=True, timeout=600)
    speeds = json.loads(ended.stdout)["speeds"]
    return float(next(one["tokens_per_s"] for one in speeds if one["phase"] == "decode"))


def served(engine: RunningEngine, requests: int, temperature: float) -> list[RequestTiming]:
    """The timings of requests of random tokens, one at a time; the first of all is left out."""
    draw, vocab_size = random.Random(0), told_object(engine.client.health())["vocab_size"]
    timings = []
    for seed in range(requests + 1):
        ids = [draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS)]
        told = {"max_tokens": ANSWER_TOKENS, "temperature": temperature, "seed": seed}
        timings.append(timing_of(engine.client.execute(prompt_ids=ids, **told)))
    return timings[1:]


if __name__ == "__main__":
    main(sys.argv[1:])
