"""Judges of device memory: one context, plain memory alone, verified, and reported as it is."""

from collections.abc import Mapping
from typing import Final

from harness.judges.http import HEALTH_FIELDS, healthy, narration
from harness.judges.rule import (
    Unseen,
    body,
    by_test,
    exchange,
    fact,
    fields,
    judge,
    limit,
    need,
    passed,
)
from harness.judges.stream import finished
from harness.observation import Finding, Json, Judge, Limits, Observation

PURPOSES: Final = ("weights", "kv", "workspace")
LEAST_WEIGHTS, MOST_WEIGHTS = 0.9, 1.15
"""Device bytes of weights in shares of the file: all of it is there, none of it unpacked."""
MIN_CHECKS: Final = 2
EXIT_CODES: Final[Mapping[str, int]] = {"cuda:99": 1, "cuda:x": 2}


def _context(observation: Observation, limits: Limits) -> Finding:
    """One process of the engine has a context, on the one device that it was given."""
    device = _on_cuda(healthy(exchange(observation, "health"), fact(observation, "model_sha256")))
    own = set(fact(observation, "processes"))
    found = [(index, own & set(pids)) for index, pids in fact(observation, "gpus")]
    found = [(index, pids) for index, pids in found if pids]
    if not found:
        raise Unseen("the driver names none of the engine's processes")
    need(len(found) == 1, f"contexts on {len(found)} GPUs, wanted one")
    index, pids = found[0]
    need(len(pids) == 1, f"{len(pids)} processes of the engine have a context, wanted one")
    visible = str(observation.facts.get("visible"))
    chosen = int(device.partition(":")[2])
    wanted = int(visible) if visible.isdigit() else chosen
    need(index == wanted, f"the context is on GPU {index}, wanted {wanted}")
    return passed(f"one context, on GPU {index}")


def _refused(observation: Observation, limits: Limits) -> Finding:
    """It ends at once, by itself, and names the device in one line."""
    ended, device = fact(observation, "exit"), fact(observation, "device")
    need(not ended["timed_out"], f"{device}: it did not end")
    wanted = EXIT_CODES[device]
    need(ended["code"] == wanted, f"{device}: exit code {ended['code']}, wanted {wanted}")
    said = ended["stdout"] + ended["stderr"]
    need("Traceback (most recent call last)" not in said, f"{device}: it ended with a traceback")
    need(device in said, f"{device}: no line names the device")
    if wanted == 1:
        errors = [x for x in narration(ended["stderr"].splitlines()) if x.get("event") == "error"]
        need(len(errors) == 1, f"{device}: {len(errors)} error events, wanted one")
        fields(errors[0], {"code": "text", "message": "text", "device": "text"}, "error event")
        need(errors[0]["code"] == "CUDA_ERROR", f"{device}: code {errors[0]['code']}")
        need("\n" not in errors[0]["message"], f"{device}: the message has more than one line")
    return passed(f"{device}: exit code {wanted}")


def _plain(observation: Observation, limits: Limits) -> Finding:
    """Weights, KV and workspace: the driver says of each allocation that it is device memory."""
    probe = fact(observation, "probe")
    cases, device = probe["cases"], probe["device"]
    for purpose in PURPOSES:
        if not any(case["purpose"] == purpose and case["bytes"] > 0 for case in cases):
            raise Unseen(f"no allocation for {purpose} was seen")
    for case in cases:
        place = f"{case['bytes']} bytes of {case['purpose']}"
        need(case["kind"] == "device", f"{place} are {case['kind']} memory")
        need(f"cuda:{case['device']}" == device, f"{place} are on device {case['device']}")
    return passed(f"{len(cases)} allocations of plain memory on {device}")


@judge
def only(observation: Observation, limits: Limits) -> Finding:
    """The device holds what is reported, weights packed as in the file; the host hardly any."""
    sha256 = fact(observation, "model_sha256")
    idle, during = (healthy(exchange(observation, n), sha256) for n in ("idle", "during"))
    _on_cuda(idle)
    held, peak = (observation.facts.get(n) for n in ("device_bytes", "peak_rss_bytes"))
    if held is None or peak is None:
        raise Unseen("the engine's device bytes or its resident bytes were not seen")
    if during["kv_bytes"] <= idle["kv_bytes"]:
        raise Unseen("no job held KV bytes when the device was looked at")
    reported, size = during["vram_bytes_used"], fact(observation, "model_bytes")
    need(reported <= held, f"{reported} bytes are reported, the device holds {held}")
    weights = during["weights_bytes"]
    least, most = LEAST_WEIGHTS * size, MOST_WEIGHTS * size
    need(least <= weights <= most, f"{weights} bytes of weights for a file of {size}")
    bound = limit(limits, "max_host_rss_bytes") + limit(limits, "chunk_bytes")
    need(peak <= bound, f"{peak} bytes were resident in the host, at most {bound:.0f}")
    return passed(
        f"{reported} bytes on the device, at most {peak} in the host",
        device_bytes=held,
        peak_rss_bytes=peak,
    )


@judge
def residency(observation: Observation, limits: Limits) -> Finding:
    """Checks are told periodically; a managed pointer makes the engine unhealthy and is named."""
    sha256, fault = fact(observation, "model_sha256"), fact(observation, "fault")
    lines = narration(fact(observation, "log_lines"))
    checks = [line for line in lines if line.get("event") == "residency_check"]
    if len(checks) < MIN_CHECKS:
        raise Unseen(f"{len(checks)} residency checks were told, wanted {MIN_CHECKS}")
    if fault == "none":
        healthy(exchange(observation, "first"), sha256)
        healthy(exchange(observation, "last"), sha256)
        need(all(c["level"] == "info" for c in checks), "a check failed without any fault")
        return passed(f"{len(checks)} checks, all well")
    sick = body(exchange(observation, "last"))
    fields(sick, {**HEALTH_FIELDS, "last_error": "object"}, "/health")
    need(sick["status"] == "unhealthy", f"status {sick['status']!r} with a managed pointer")
    need(sick["resident"] is False, "/health says that the model is resident")
    said = str(sick["last_error"].get("message"))
    need("managed memory" in said, f"last_error does not say why: {said!r:.120}")
    told = [c for c in checks if c["level"] == "error" and "managed" in str(c.get("message"))]
    need(bool(told), "no residency check told the violation")
    return passed(f"unhealthy: {said}")


@judge
def tracking(observation: Observation, limits: Limits) -> Finding:
    """The process's bytes less those of a bare context are the bytes that /health reports.

    The bare context is what an engine with a tiny model holds beyond what it reports.
    """
    table = healthy(exchange(observation, "health"), fact(observation, "model_sha256"))
    tiny = body(exchange(observation, "tiny"))
    _on_cuda(table)
    held, tiny_held = (observation.facts.get(n) for n in ("device_bytes", "tiny_device_bytes"))
    if held is None or tiny_held is None:
        raise Unseen("the driver does not tell what the engines hold")
    context = tiny_held - tiny["vram_bytes_used"]
    need(context > 0, f"an engine holds {-context} bytes less than it reports")
    reported, seen = table["vram_bytes_used"], held - context
    bound = limit(limits, "tolerance_ratio") * reported + limit(limits, "tolerance_bytes")
    off = reported - seen
    need(abs(off) <= bound, f"{reported} bytes reported, {seen} seen: off by {off}")
    return passed(f"{reported} bytes reported, {seen} seen", reported=reported, seen=seen)


@judge
def fits(observation: Observation, limits: Limits) -> Finding:
    """With its whole context in use the model fits, and the plan foresees it."""
    sha256, planned = fact(observation, "model_sha256"), fact(observation, "planned")
    during = healthy(exchange(observation, "during"), sha256)
    _on_cuda(during)
    started = finished(exchange(observation, "answer")).started or {}
    context = limit(limits, "context_tokens")
    need(planned["context_length"] == context, f"planned for {planned['context_length']} tokens")
    asked = started["prompt_tokens"]
    need(0.95 * context <= asked, f"a prompt of {asked} tokens does not fill {context:.0f}")
    need(during["kv_bytes"] > 0, "no KV bytes are reported while the context is in use")
    held = observation.facts.get("device_bytes")
    if held is None:
        raise Unseen("the driver does not tell what the engine holds")
    most, ratio = limit(limits, "max_device_bytes"), limit(limits, "envelope_ratio")
    need(held <= most, f"{held} device bytes, at most {most:.0f}")
    envelope = planned["weights_bytes"] + planned["kv_f16_bytes"]
    off = abs(held - envelope) / envelope
    need(off <= ratio, f"{held} device bytes, {envelope} planned: {off:.0%} apart")
    return passed(f"{held} device bytes, {envelope} planned", device_bytes=held)


def _on_cuda(health: Mapping[str, Json]) -> str:
    device = str(health["device"])
    if not device.startswith("cuda:"):
        raise Unseen(f"the engine runs on {device}, wanted a CUDA device")
    return device


JUDGES: Final[Mapping[str, Judge]] = {
    "G1-CUDA-CONTEXT": by_test(
        {
            "test_one_context_on_the_chosen_device": _context,
            "test_wrong_device_is_refused": _refused,
            "test_every_allocation_is_plain": _plain,
        }
    ),
    "G1-VRAM-ONLY": only,
    "G1-VRAM-RESIDENCY": residency,
    "G1-VRAM-TRACKING": tracking,
    "G3-24GB": fits,
}
