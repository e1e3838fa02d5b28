"""The judges of adapters: what they pass, and how each rule fails."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.judges.adapters import ADAPTERS
from harness.observation import Finding, Observation, Verdict
from tests.unit.recorded import exchange, run
from tests.unit.test_judges_architectures import HEALTH, SHA

FAMILIES = {
    "LlamaAdapter": ["llama", "qwen2", "phi3"],
    "GPTAdapter": ["gpt2", "gpt-oss"],
}


def cases() -> list[dict[str, Any]]:
    return [
        {
            "architecture": architecture,
            "adapter": adapter,
            "architectures": FAMILIES[adapter],
            "interface": {"name": True, "architectures": True, "program": True},
            "program_parameters": ["config", "tensors"],
        }
        for architecture, adapter in ADAPTERS.items()
    ]


def interface(found: list[dict[str, Any]]) -> Finding:
    seen = Observation("G3-INTERFACE", "test_interface", 1, {}, {"probe": {"cases": found}})
    return JUDGES["G3-INTERFACE"](seen, {})


def test_one_interface_passes() -> None:
    assert interface([*cases(), {"factory_of": "llama"}]).verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("adapter", "OtherAdapter", "adapters"),
        ("interface", {"name": True, "architectures": True}, "lacks program"),
        ("interface", {"name": True, "architectures": True, "program": False}, "lacks program"),
        ("program_parameters", ["config"], "program takes"),
        ("architectures", ["llama"], "says it serves"),
    ],
)
def test_each_rule_of_the_interface_can_fail(name: str, value: Any, said: str) -> None:
    found = cases()
    found[0][name] = value
    assert interface(found).verdict == Verdict.FAIL
    assert said in interface(found).message


def test_a_missing_architecture_fails() -> None:
    assert interface(cases()[1:]).verdict == Verdict.FAIL


MESSAGE = "architecture: one of llama, qwen2, phi3, gpt2, gpt-oss wanted, got 'mamba'"


class Stranger:
    """A clear refusal; a test breaks one thing of it."""

    def __init__(self) -> None:
        self.code, self.message, self.changed = "MODEL_LOAD_FAILED", MESSAGE, True
        self.ended: dict[str, Any] = {}

    def judged(self) -> Finding:
        line = json.dumps({"event": "error", "code": self.code, "message": self.message})
        ended = {"timed_out": False, "code": 1, "stderr": line, **self.ended}
        facts = {"exit": ended, "architecture": "mamba", "changed": self.changed}
        seen = Observation("G3-DETECT", "test_strange_architecture[unknown]", 1, {}, facts)
        return JUDGES["G3-DETECT"](seen, {})


def change(**changed: Any) -> Callable[[object], None]:
    def apply(seen: object) -> None:
        for name, value in changed.items():
            setattr(seen, name, value)

    return apply


def test_a_clear_refusal_passes() -> None:
    assert Stranger().judged().verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (change(ended={"timed_out": True}), "did not end"),
        (change(ended={"code": 0}), "exit code 0"),
        (change(ended={"stderr": "Traceback (most recent call last)"}), "traceback"),
        (change(ended={"stderr": ""}), "0 error events"),
        (change(code="INTERNAL"), "code is INTERNAL"),
        (change(message=MESSAGE.replace("mamba", "x")), "does not name 'mamba'"),
        (change(message=MESSAGE.replace("phi3", "")), "does not list phi3"),
        (change(message=MESSAGE + "\nmore"), "more than one line"),
    ],
)
def test_each_rule_of_the_refusal_can_fail(broken: Callable[[object], None], said: str) -> None:
    seen = Stranger()
    broken(seen)
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert said in found.message


def test_an_unchanged_file_is_an_error() -> None:
    seen = Stranger()
    seen.changed = False
    assert seen.judged().verdict == Verdict.ERROR


PATHS = ("/load", "/models/load", "/model", "/v1/models", "/v1/completions")


class Single:
    """An engine that keeps its model; a test breaks one thing of it."""

    def __init__(self) -> None:
        self.paths = PATHS
        self.status = 404
        self.after: dict[str, Any] = {"uptime_seconds": 2.0}
        self.again = ["a", "b"]

    def judged(self) -> Finding:
        request = {"temperature": 0.0, "max_tokens": 2}
        loads = [exchange(path, {}, sent={}, status=404) for path in self.paths[1:]]
        loads.insert(0, exchange(self.paths[0], {}, sent={}, status=self.status))
        named = {
            "health": (exchange("/health", HEALTH),),
            "first": (run(["a", "b"], **request),),
            "loads": tuple(loads),
            "again": (run(self.again, at_ms=50, **request),),
            "afterwards": (exchange("/health", {**HEALTH, **self.after}),),
        }
        seen = Observation(
            "G3-SINGLE-MODEL", "test_no_second_model", 1, named, {"model_sha256": SHA}
        )
        return JUDGES["G3-SINGLE-MODEL"](seen, {})


def test_refused_loads_pass() -> None:
    assert Single().judged().verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (change(status=200), "POST /load: status 200"),
        (change(status=503), "status 503"),
        (change(paths=PATHS[1:]), "only 4 loads"),
        (change(paths=(*PATHS[:4], "/other")), "no completion of another model"),
        (change(after={"uptime_seconds": 2.0, "model": "x"}), "model was m, is x"),
        (change(after={"uptime_seconds": 2.0, "model_sha256": "cd"}), "model_sha256"),
        (change(after={"uptime_seconds": 0.5}), "started anew"),
        (change(again=["a"]), "a request before and after"),
    ],
)
def test_each_rule_of_the_single_model_can_fail(
    broken: Callable[[object], None], said: str
) -> None:
    seen = Single()
    broken(seen)
    found = seen.judged()
    assert found.verdict == Verdict.FAIL
    assert said in found.message
