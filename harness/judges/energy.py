"""The judge of energy: a sensor's joules for each token, above what the device takes when idle."""

import math
from typing import Final

from harness.judges.rule import Unseen, body, exchange, exchanges, fact, judge, limit, need, passed
from harness.judges.stream import finished
from harness.observation import Finding, Json, Limits, Observation

SENSORS: Final = ("nvml-counter", "nvml-power")


@judge
def energy(observation: Observation, limits: Limits) -> Finding:
    """Both whiles are long enough for the sensor; the tokens are those of the streams."""
    source = fact(observation, "source")
    if source not in SENSORS:
        raise Unseen(f"no sensor of the GPU was read: {fact(observation, 'accuracy')}")
    device = str(body(exchange(observation, "health"))["device"])
    if not device.startswith("cuda:"):
        raise Unseen(f"the engine runs on {device}, wanted a CUDA device")
    idle, busy = fact(observation, "idle"), fact(observation, "busy")
    least_s = limit(limits, "min_sensed_seconds")
    idle_w, busy_w = _watts(idle, least_s, "idle"), _watts(busy, least_s, "busy")
    need(busy_w > idle_w, f"{busy_w:.1f} W while it works, {idle_w:.1f} W while idle")
    tokens = sum(len(finished(job).tokens) for job in exchanges(observation, "jobs"))
    need(tokens >= limit(limits, "min_tokens"), f"only {tokens} tokens")
    whole_j, above_j = (w * busy["seconds"] / tokens for w in (busy_w, busy_w - idle_w))
    return passed(
        f"{whole_j:.4f} J a token by {source}, {above_j:.4f} J above {idle_w:.0f} W idle",
        joules_a_token=whole_j,
        joules_a_token_above_idle=above_j,
        idle_w=idle_w,
        busy_w=busy_w,
        tokens=tokens,
    )


def _watts(sensed: Json, least_s: float, name: str) -> float:
    """Mean power of a while; the limit is a number of seconds that must at least have passed."""
    seconds, joules = sensed["seconds"], sensed["joules"]
    need(seconds >= least_s, f"{name}: {seconds:.1f} s were sensed, at least {least_s:g} s")
    need(bool(joules), f"{name}: the sensor told nothing")
    total = math.fsum(joules.values())
    need(total > 0, f"{name}: {total} J in {seconds:.1f} s")
    return total / float(seconds)


JUDGES: Final = {"G4-ENERGY": energy}
