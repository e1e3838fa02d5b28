"""Judges of the kernels' launchers and of their compilation."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from harness.judges.rule import Unseen, by_test, fact, judge, limit, need, passed
from harness.observation import Finding, Json, Judge, Limits, Observation

ARGUMENT_ERROR: Final = "KernelArgumentError"
LAUNCH_ERROR: Final = "KernelLaunchError"
MIN_CUBIN_BYTES: Final = 1024
_CUDA: Final = re.compile(r"(cupy|cuda|nvidia|pynvml)", re.IGNORECASE)


def _cases(observation: Observation) -> dict[str, list[Mapping[str, Json]]]:
    """The probe's cases by kind."""
    kinds: dict[str, list[Mapping[str, Json]]] = {}
    for case in fact(observation, "probe")["cases"]:
        kinds.setdefault(case["kind"], []).append(case)
    return kinds


@judge
def api(observation: Observation, limits: Limits) -> Finding:
    """Each launcher is documented and typed, does what is asked, and refuses what is spoiled."""
    kinds = _cases(observation)
    declared = kinds.get("launcher", [])
    least = limit(limits, "min_launchers")
    need(len(declared) >= least, f"{len(declared)} launchers, wanted {least:.0f}")
    for case in declared:
        name = case["launcher"]
        need(bool(case["documentation"].strip()), f"{name} is not documented")
        need(not case["untyped"], f"{name}: {', '.join(case['untyped'])} without a type")
    names = {case["launcher"] for case in declared}
    _accepted(names, kinds.get("call", []))
    spoiled = kinds.get("spoiled", [])
    _refused(names, spoiled)
    _told(kinds.get("device_error", []))
    return passed(f"{len(names)} launchers refused {len(spoiled)} spoiled arguments")


def _accepted(names: set[str], calls: Sequence[Mapping[str, Json]]) -> None:
    unseen = names - {call["launcher"] for call in calls}
    if unseen:
        raise Unseen(f"{', '.join(sorted(unseen))} was not called")
    for call in calls:
        good = call["launched"] >= 1 and not call["error"]
        need(good, f"{call['launcher']} refused a good call: {call['message'] or call['error']}")


def _refused(names: set[str], spoiled: Sequence[Mapping[str, Json]]) -> None:
    unseen = names - {case["launcher"] for case in spoiled if case["spoil"] == "shape"}
    if unseen:
        raise Unseen(f"{', '.join(sorted(unseen))} was not given a bad shape")
    for case in spoiled:
        place = f"{case['launcher']}, array {case['array']}: bad {case['spoil']}"
        need(case["launched"] == 0, f"{place} was launched")
        got = case["error"] or "no error"
        need(got == ARGUMENT_ERROR, f"{place}: wanted {ARGUMENT_ERROR}, got {got}")
        one_line = bool(case["message"]) and "\n" not in case["message"]
        need(one_line, f"{place}: wanted one line, got {case['message']!r:.80}")


def _told(errors: Sequence[Mapping[str, Json]]) -> None:
    """Success is silent, and any other status of the driver becomes an error."""
    if {bool(case["status"]) for case in errors} != {False, True}:
        raise Unseen("wanted a call to the driver that succeeds, and one that fails")
    for case in errors:
        wanted = LAUNCH_ERROR if case["status"] else ""
        got = case["error"]
        need(got == wanted, f"device status {case['status']}: wanted {wanted!r}, got {got!r}")


def _compiled(observation: Observation, limits: Limits) -> Finding:
    """Every source there is has machine code for the architecture."""
    architecture = fact(observation, "architecture")
    cases = fact(observation, "probe")["cases"]
    for case in cases:
        place = f"{case['source']} for {case['architecture']}"
        if case["architecture"] != architecture:
            raise Unseen(f"{place} was compiled, wanted {architecture}")
        need(case["ok"] is True, f"{place}: {case['error']}")
        size = case["cubin_bytes"]
        need(size >= MIN_CUBIN_BYTES, f"{place}: {size} bytes of machine code")
    sources = set(fact(observation, "sources"))
    need(bool(sources), "there is no kernel source")
    missing = sources - {case["source"] for case in cases}
    need(not missing, f"{', '.join(sorted(missing))} was not compiled for {architecture}")
    return passed(f"{len(cases)} sources compiled for {architecture}")


def _optional(observation: Observation, limits: Limits) -> Finding:
    """Nothing of CUDA is required unless an extra is asked for."""
    requirements = fact(observation, "requirements")
    cuda = [line for line in requirements if _CUDA.match(line)]
    if not cuda:
        raise Unseen("no extra brings CUDA")
    forced = [line for line in cuda if "extra ==" not in line]
    need(not forced, f"required without an extra: {', '.join(forced)}")
    return passed(f"{len(cuda)} CUDA requirements, each in an extra")


JUDGES: Final[Mapping[str, Judge]] = {
    "G1-KERNEL-API": api,
    "G1-KERNEL-COMPILE": by_test(
        {"test_every_source_compiles": _compiled, "test_cuda_is_optional": _optional}
    ),
}
