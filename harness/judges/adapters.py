"""Judges of adapters: their interface, the factory, strange architectures, one model for life."""

from collections.abc import Mapping
from typing import Final

from harness.judges.http import healthy, narration
from harness.judges.rule import (
    Unseen,
    exchange,
    exchanges,
    fact,
    fields,
    judge,
    need,
    passed,
    said,
    where,
)
from harness.judges.stream import identical
from harness.observation import Finding, Judge, Limits, Observation

ADAPTERS: Final[Mapping[str, str]] = {
    "llama": "LlamaAdapter",
    "qwen2": "LlamaAdapter",
    "phi3": "LlamaAdapter",
    "gpt2": "GPTAdapter",
    "gpt-oss": "GPTAdapter",
}
"""The adapter that serves each architecture."""

_INTERFACE: Final = {"name", "architectures", "program"}
_PARAMETERS: Final = ["config", "tensors"]


@judge
def judge_interface(observation: Observation, limits: Limits) -> Finding:
    """Every architecture's adapter has every member of the one interface."""
    cases = [case for case in fact(observation, "probe")["cases"] if "interface" in case]
    got = {case["architecture"]: case["adapter"] for case in cases}
    need(len(cases) == len(got) and got == dict(ADAPTERS), f"adapters {got}, wanted {ADAPTERS}")
    for case in cases:
        place = f"{case['adapter']} for {case['architecture']}"
        lacking = _INTERFACE - {name for name, has in case["interface"].items() if has}
        lacking |= {name for name, has in case["interface"].items() if not has}
        need(not lacking, f"{place}: lacks {', '.join(sorted(lacking))}")
        parameters = case["program_parameters"]
        need(parameters == _PARAMETERS, f"{place}: program takes {parameters}")
        served = {name for name, adapter in ADAPTERS.items() if adapter == case["adapter"]}
        need(set(case["architectures"]) == served, f"{place}: says it serves {served}")
    return passed(f"{len(cases)} architectures, {len(set(got.values()))} adapters, one interface")


@judge
def judge_strange_architecture(observation: Observation, limits: Limits) -> Finding:
    """The engine ends with one error that names the stranger and lists the known."""
    if fact(observation, "changed") is not True:
        raise Unseen("the model file's architecture was not changed")
    ended, stranger = fact(observation, "exit"), fact(observation, "architecture")
    need(not ended["timed_out"], "it did not end")
    need(ended["code"] == 1, f"exit code {ended['code']}, wanted 1")
    need("Traceback" not in ended["stderr"], "it ended with a traceback")
    errors = [x for x in narration(ended["stderr"].splitlines()) if x.get("event") == "error"]
    need(len(errors) == 1, f"{len(errors)} error events, wanted one")
    fields(errors[0], {"code": "text", "message": "text"}, "error event")
    code, message = errors[0]["code"], errors[0]["message"]
    need(code == "MODEL_LOAD_FAILED", f"code is {code}")
    need("\n" not in message, "the message has more than one line")
    need(repr(stranger) in message, f"the message does not name {stranger!r}: {message}")
    missing = [name for name in ADAPTERS if name not in message]
    need(not missing, f"the message does not list {', '.join(missing)}: {message}")
    return passed(message)


MIN_LOADS: Final = 5


@judge
def judge_single_model(observation: Observation, limits: Limits) -> Finding:
    """Every request to load or to use another model is refused, and nothing has changed by it."""
    sha256 = fact(observation, "model_sha256")
    before = healthy(exchange(observation, "health"), sha256)
    loads = exchanges(observation, "loads")
    need(len({(one.method, one.path) for one in loads}) >= MIN_LOADS, f"only {len(loads)} loads")
    need(any(one.path == "/v1/completions" for one in loads), "no completion of another model")
    for one in loads:
        refused = one.status is not None and 400 <= one.status < 500 and one.error is None
        need(refused, f"{where(one)}: status {one.status}, wanted a refusal: {said(one)}")
    after = healthy(exchange(observation, "afterwards"), sha256)
    for name in ("model", "worker_id", "architecture", "adapter", "vocab_size", "quant_kind"):
        need(before[name] == after[name], f"/health: {name} was {before[name]}, is {after[name]}")
    need(after["uptime_seconds"] > before["uptime_seconds"], "the engine has started anew")
    again = (exchange(observation, "first"), exchange(observation, "again"))
    ids = identical(again, "a request before and after")
    return passed(f"{len(loads)} loads refused; the same {len(ids)} tokens before and after")


JUDGES: Final[Mapping[str, Judge]] = {
    "G3-INTERFACE": judge_interface,
    "G3-DETECT": judge_strange_architecture,
    "G3-SINGLE-MODEL": judge_single_model,
}
