"""Gate 4: baselines of speed, load and shutdown, leaks, and experiments in this process."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from harness.baseline import baseline_of, files_of, replace_last, timing_of
from harness.clients.native import NativeClient
from harness.energy import EnergyMeter, open_meter
from harness.environment import cpu_name, gpu_facts
from harness.launch import LaunchEngine, LaunchSpec, RunningEngine
from harness.launch.logs import lines_after
from harness.measure import run_experiment
from harness.observation import Exchange, Json, Observe

STORIES = (
    "Once upon a time, in a small village by the sea, there lived",
    "The three laws of motion are",
    "To bake bread you need flour, water, salt and",
    "The history of the lighthouse begins when",
    "In the mountains the winter is long, and people",
)
REQUESTS = 15
TOKENS = 32
LEAK_REQUESTS = 100
ENERGY_TOKENS, IDLE_S, BUSY_S = 256, 2.0, 3.0
"""Many updates of a sensor that is read every 100 ms."""
SPAWNING = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system")


@pytest.mark.check("G4-PERF-BASELINE", "G4-PERF-TTFT", "G4-PERF-ITL", "G4-PERF-RATE")
@pytest.mark.usefixtures("alone_on_gpu")
def test_baseline(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    request = {"max_tokens": TOKENS, "temperature": 1.0}
    client.execute(**request, prompt=STORIES[0])
    jobs = [
        client.execute(**request, prompt=f"{number}. {STORIES[number % 5]}", seed=number)
        for number in range(REQUESTS)
    ]
    about = hardware_and_model(engine)
    timings = [timing_of(job) for job in jobs]
    baseline = baseline_of(timings, about)
    observe(
        jobs=jobs,
        health=[client.health() for _ in range(20)],
        refused=[client.execute(prompt=STORIES[0], max_tokens=0) for _ in range(20)],
        about=about,
        files=files_of(timings, baseline),
        last=replace_last(baseline) or {},
    )


@pytest.mark.check("G4-PERF-LOAD")
@pytest.mark.usefixtures("alone_on_gpu")
def test_load(launch_engine: LaunchEngine, observe: Observe) -> None:
    begun_s = monotonic()
    engine = launch_engine()
    ready_s = monotonic() - begun_s
    observe(
        ready_s=ready_s,
        model_bytes=engine.model_path.stat().st_size,
        log_lines=[
            line for line in lines_after(engine, '"ready"') if "model_load_complete" in line
        ],
    )


@pytest.mark.check("G4-PERF-SHUTDOWN")
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_shutdown(state: str, launch_engine: LaunchEngine, observe: Observe) -> None:
    engine = launch_engine()
    job = None
    if state == "busy":
        job = engine.client.start(prompt=STORIES[0], max_tokens=2048 - 64, temperature=1.0)
        job.wait_for("token", 30.0)
    begun_s = monotonic()
    shutdown = engine.client.shutdown()
    while engine.alive() and monotonic() - begun_s < 60.0:
        sleep(0.01)
    took_s = monotonic() - begun_s
    seen = {} if job is None else {"job": job.finish(5.0)}
    observe(shutdown=shutdown, took_s=took_s, exit_code=engine.stop().code, state=state, **seen)


@pytest.mark.check("G4-PERF-LEAK")
def test_a_hundred_requests_leak_nothing(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    request = {"max_tokens": 3, "temperature": 1.0}
    for number in range(10):
        client.execute(**request, prompt=STORIES[number % 5])
    before = client.health()
    samples: list[Json] = [sample(engine)]
    jobs = []
    for number in range(LEAK_REQUESTS):
        prompt = STORIES[number % 5] * (1 + number % 3)
        jobs.append(client.execute(**request, prompt=prompt, seed=number))
        if number % 10 == 9:
            samples.append(sample(engine))
    observe(jobs=jobs, samples=samples, before=before, after=client.health())


@pytest.mark.check("G4-ENERGY")
@pytest.mark.usefixtures("alone_on_gpu")
def test_energy_of_a_token(launch_engine: LaunchEngine, observe: Observe) -> None:
    """The sensor over an idle while with the model loaded, then over jobs one after another."""
    engine = launch_engine()
    client = engine.client
    request = {"max_tokens": ENERGY_TOKENS, "temperature": 1.0}
    client.execute(**request, prompt=STORIES[0])
    meter = open_meter((int(engine.spec.env.get("CUDA_VISIBLE_DEVICES", "0")),))
    idle = metered(meter, lambda: sleep(IDLE_S))
    jobs: list[Exchange] = []

    def work() -> None:
        begun_s = monotonic()
        while monotonic() - begun_s < BUSY_S:
            prompt = STORIES[len(jobs) % 5]
            jobs.append(client.execute(**request, prompt=prompt, seed=len(jobs)))

    busy = metered(meter, work)
    observe(
        source=meter.source,
        accuracy=meter.accuracy,
        idle=idle,
        busy=busy,
        jobs=jobs,
        health=client.health(),
    )


@pytest.mark.check("G4-MEASURE")
def test_experiment_in_process(launch_spec: LaunchSpec, tmp_path: Path, observe: Observe) -> None:
    spawned: list[str] = []
    with Spawns(spawned):
        before = os.times()
        result = run_experiment(
            model=str(launch_spec.model_path),
            n_requests=3,
            max_tokens=8,
            warm_up={"requests": 1},
            baseline_s=0,
            output_dir=tmp_path,
        )
        after = os.times()
    folder = tmp_path / result.experiment_id
    observe(
        result=json.loads((folder / "result.json").read_text(encoding="utf-8")),
        timeseries_head=(folder / "timeseries.parquet").read_bytes()[:4].decode("latin-1"),
        spawned=spawned,
        own_cpu_s=sum(after[:2]) - sum(before[:2]),
        children_cpu_s=sum(after[2:4]) - sum(before[2:4]),
        returned_id=result.experiment_id,
    )


def metered(meter: EnergyMeter, work: Callable[[], None]) -> Json:
    """Joules by device, and seconds, of some work; joules are None without a sensor."""
    begun_s = monotonic()
    meter.start()
    work()
    joules = meter.stop()
    return {"joules": joules, "seconds": monotonic() - begun_s}


def hardware_and_model(engine: RunningEngine) -> dict[str, Json]:
    """What numbers are of; the APIs of others have no /health that tells."""
    told = {"device": "", "model": "unknown"}
    if engine.client.kind == NativeClient.kind:
        told = json.loads(engine.client.health().body)
    return {
        "device": device_name(told["device"]) if told["device"] else "unknown",
        "model": told["model"],
        "model_sha256": engine.model_sha256,
    }


def device_name(device: str) -> str:
    """The name of the hardware behind a device of /health."""
    gpus = gpu_facts()["gpus"]
    if not device.startswith("cuda") or not gpus:
        return cpu_name()
    index = int(device.partition(":")[2] or 0)
    return str(gpus[min(index, len(gpus) - 1)]["name"])


def sample(engine: RunningEngine) -> Json:
    """Memory, threads and open files of the engine's processes."""
    facts = engine.process_facts() or {}
    files = facts.get("open_files")
    return {
        "anonymous_bytes": facts.get("anonymous_bytes"),
        "threads": facts.get("threads"),
        "open_files": None if files is None else len(files),
    }


class Spawns:
    """Records the program of each process that this one starts. An audit hook stays for ever."""

    _into: list[str] | None = None
    _hooked = False

    def __init__(self, into: list[str]) -> None:
        self._own = into

    def __enter__(self) -> None:
        if not Spawns._hooked:
            Spawns._hooked = True
            sys.addaudithook(Spawns._saw)
        Spawns._into = self._own

    def __exit__(self, *exc: object) -> None:
        Spawns._into = None

    @staticmethod
    def _saw(event: str, args: tuple[Any, ...]) -> None:
        if Spawns._into is not None and event in SPAWNING:
            Spawns._into.append(Path(os.fsdecode(args[0])).name if args and args[0] else event)
