"""What an engine's work took beside what its processor or GPU can do."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.bandwidth import memory_bandwidth_bytes_per_s
from harness.gpu_work import GpuWork
from harness.launch import RunningEngine
from harness.profiles import Profile

Request = Mapping[str, Any]


def observed_work(
    engine: RunningEngine, profile: Profile, requests: Sequence[Request]
) -> dict[str, Any]:
    """`jobs` with the processor's or the GPU's time at them, and the memory's bandwidth beside."""
    return (_on_gpu if "cuda" in profile.places else _on_cpu)(engine, requests)


def _on_cpu(engine: RunningEngine, requests: Sequence[Request]) -> dict[str, Any]:
    """The jobs, the processor time that they took, and what memory gives."""
    before_s = (engine.process_facts() or {})["cpu_s"]
    jobs = [engine.client.execute(**request) for request in requests]
    used_s = (engine.process_facts() or {})["cpu_s"] - before_s
    bandwidth = memory_bandwidth_bytes_per_s()
    return {"jobs": jobs, "compute_s": used_s, "bandwidth_bytes_per_s": bandwidth}


def _on_gpu(engine: RunningEngine, requests: Sequence[Request]) -> dict[str, Any]:
    """The same of the GPUs on which the engine holds memory."""
    with GpuWork((engine.process_facts() or {}).get("processes") or ()) as work:
        jobs = [engine.client.execute(**request) for request in requests]
        bandwidth = work.bandwidth_bytes_per_s()
    return {"jobs": jobs, "gpu_busy_s": work.busy_s, "bandwidth_bytes_per_s": bandwidth}
