"""Judges of the kernels, and the probe of their launchers."""

import copy
from functools import cache
from typing import Any

import pytest

from engine.backends import cuda_launchers
from harness.judges import JUDGES
from harness.observation import Observation, Verdict

ERROR = Verdict.ERROR
ARGUMENT = "KernelArgumentError"


def judged(id_: str, test: str, **facts: Any) -> Any:
    return JUDGES[id_](Observation(id_, test, 1, {}, facts), {"min_launchers": 2})


def fails(found: Any, says: str, verdict: Verdict = Verdict.FAIL) -> None:
    assert (found.verdict, says in found.message) == (verdict, True), found


@cache
def probed() -> list[dict[str, Any]]:
    return cuda_launchers.cases(None)


def api(cases: list[dict[str, Any]]) -> Any:
    return judged("G1-KERNEL-API", "test_launchers", probe={"cases": cases})


def changed(kind: str, **fields: Any) -> list[dict[str, Any]]:
    """The probe's cases, one of this kind changed: the first, or the last device error."""
    cases = copy.deepcopy(probed())
    of_kind = [case for case in cases if case["kind"] == kind]
    of_kind[-1 if kind == "device_error" else 0].update(fields)
    return cases


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("launcher", {"documentation": " "}, "is not documented"),
        ("launcher", {"untyped": ["x"]}, "x without a type"),
        ("call", {"launched": 0}, "refused a good call"),
        ("call", {"error": "E", "message": "no"}, "refused a good call: no"),
        ("spoiled", {"launched": 1}, "was launched"),
        ("spoiled", {"error": ""}, "got no error"),
        ("spoiled", {"error": "TypeError"}, "got TypeError"),
        ("spoiled", {"message": "a\nb"}, "wanted one line"),
        ("spoiled", {"message": ""}, "wanted one line"),
        ("device_error", {"error": ""}, "device status 719: wanted 'KernelLaunchError'"),
    ],
)
def test_launchers(kind: str, fields: dict[str, Any], says: str) -> None:
    assert api(probed()).verdict == Verdict.PASS
    fails(api(changed(kind, **fields)), says)


def test_launchers_that_were_not_shown() -> None:
    one = [case for case in probed() if case["kind"] != "launcher" or "norm" in case["launcher"]]
    fails(api(one), "1 launchers, wanted 2")
    uncalled = [c for c in probed() if c["kind"] != "call" or c["launcher"] != "norm.norm"]
    fails(api(uncalled), "norm.norm was not called", ERROR)
    shapeless = [c for c in probed() if c.get("spoil") != "shape" or c["launcher"] != "norm.norm"]
    fails(api(shapeless), "norm.norm was not given a bad shape", ERROR)
    fails(api([c for c in probed() if c.get("status") != 0]), "a call to the driver", ERROR)


def test_the_probe_calls_every_launcher() -> None:
    by_kind = {
        kind: {case["launcher"] for case in probed() if case["kind"] == kind}
        for kind in ("launcher", "call", "spoiled")
    }
    assert by_kind["launcher"] == by_kind["call"] == by_kind["spoiled"]


def compiled(sources: list[str] | None = None, **fields: Any) -> Any:
    case = {
        "source": "a.cu",
        "architecture": "sm_90",
        "ok": True,
        "cubin_bytes": 9000,
        "error": "",
        **fields,
    }
    return judged(
        "G1-KERNEL-COMPILE",
        "test_every_source_compiles[sm_90]",
        probe={"cases": [case]},
        architecture="sm_90",
        sources=["a.cu"] if sources is None else sources,
    )


def test_compilation() -> None:
    assert compiled().verdict == Verdict.PASS
    fails(compiled(ok=False, error="line 3"), "a.cu for sm_90: line 3")
    fails(compiled(cubin_bytes=0), "0 bytes of machine code")
    fails(compiled(["a.cu", "b.cu"]), "b.cu was not compiled")
    fails(compiled([]), "no kernel source")
    fails(compiled(architecture="sm_80"), "wanted sm_90", ERROR)


def optional(*requirements: str) -> Any:
    return judged("G1-KERNEL-COMPILE", "test_cuda_is_optional", requirements=list(requirements))


def test_cuda_is_in_extras_alone() -> None:
    assert optional("pytest", 'cupy-cuda13x>=14; extra == "cuda13"').verdict == Verdict.PASS
    fails(optional("cuda-bindings>=13"), "required without an extra: cuda-bindings")
    fails(optional('nvidia-ml-py; python_version > "3"'), "required without an extra")
    fails(optional("pytest"), "no extra brings CUDA", ERROR)
