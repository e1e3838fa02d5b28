"""Judges of start and end: the order of a start, load progress, clean failure, what is mapped."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

from harness.judges.http import healthy, narration
from harness.judges.rule import (
    Unseen,
    by_test,
    exchange,
    fact,
    fields,
    json_object,
    judge,
    limit,
    need,
    passed,
)
from harness.observation import Finding, Json, Judge, Limits, Observation

_ORDER: Final = ("startup", "model_load_start", "model_load_complete", "ready")
_PERCENTS: Final = [0, 25, 50, 75, 100]
_PACKAGE: Final = re.compile(
    r"(py|lib)?(llama[._-]?cpp|ggml|ctransformers|llamafile)", re.IGNORECASE
)
_FILE: Final = re.compile(
    r"(^|/)(lib)?(llama|ggml)([._-][^/]*)?\.(so|dylib|dll|a|c|cc|cpp|cu|cuh|h|hpp|m|metal)(\.|$)"
    r"|(^|/)(llama[._-]?cpp|llama_cpp_python|ggml|ctransformers)(/|$)",
    re.IGNORECASE,
)
_LOOKS: Final = {
    "distributions": _PACKAGE.match,
    "imports": _PACKAGE.match,
    "files": _FILE.search,
    "maps": _FILE.search,
    "open_files": _FILE.search,
}


def _starts(observation: Observation, limits: Limits) -> Finding:
    lines = narration(fact(observation, "log_lines"))
    at = {name: _positions(lines, name) for name in _ORDER}
    for name, found in at.items():
        need(len(found) == 1, f"narration: {len(found)} {name} events during start, wanted one")
    firsts = [at[name][0] for name in _ORDER]
    need(firsts == sorted(firsts), f"narration: wanted the order {' → '.join(_ORDER)}")
    progress = _positions(lines, "model_load_progress")
    need(bool(progress), "narration: no model_load_progress")
    inside = at["model_load_start"][0] < progress[0] <= progress[-1] < at["model_load_complete"][0]
    need(inside, "narration: load progress outside of the load")
    healthy(exchange(observation, "health"), fact(observation, "model_sha256"))
    ready_s, bound_s = fact(observation, "ready_s"), limit(limits, "ready_s")
    need(ready_s <= bound_s, f"ready after {ready_s:.1f} s, wanted {bound_s:g} s")
    return passed(f"started in order, ready after {ready_s:.2f} s", ready_s=ready_s)


def _calls_back(observation: Observation, limits: Limits) -> Finding:
    calls = fact(observation, "callbacks")
    need(len(calls) == 1, f"{len(calls)} ready callbacks, wanted one")
    call = calls[0]
    need(call["method"] == "POST", f"the callback came as {call['method']}, wanted POST")
    told = json_object(call["body"].encode(), "ready callback")
    need(told.get("worker_id") == fact(observation, "worker_id"), "it names another worker_id")
    healthy(exchange(observation, "health"), fact(observation, "model_sha256"))
    return passed("one ready callback, sent when /health already answered")


def _positions(lines: Sequence[Mapping[str, Json]], event: str) -> list[int]:
    return [index for index, line in enumerate(lines) if line.get("event") == event]


_FAILURES: Final[Mapping[str, tuple[str, ...]]] = {
    "missing-file": ("MODEL_LOAD_FAILED",),
    "not-gguf": ("MODEL_LOAD_FAILED",),
    "truncated": ("MODEL_LOAD_FAILED",),
    "empty": ("MODEL_LOAD_FAILED",),
    "no-memory": ("INSUFFICIENT_VRAM",),
    "no-device": ("CUDA_ERROR",),
}
MAX_FAIL_S: Final = 30.0


def _fails(observation: Observation, limits: Limits) -> Finding:
    case = _case(observation)
    codes = _FAILURES.get(case)
    if codes is None:
        raise Unseen(f"no case named {case!r}")
    ended = fact(observation, "exit")
    _check_exit(ended, 1)
    errors = [x for x in narration(ended["stderr"].splitlines()) if x.get("event") == "error"]
    need(len(errors) == 1, f"{case}: {len(errors)} error events, wanted one")
    told = errors[0]
    shape = {"code": "text", "message": "text", "device": "text", "model_path": "text"}
    fields(told, shape, f"{case}: error event")
    need(told.get("level") == "error", f"{case}: level is {told.get('level')!r}")
    need(told["code"] in codes, f"{case}: code is {told['code']}, wanted {' or '.join(codes)}")
    need(
        PurePath(told["model_path"]).name == fact(observation, "model_name"),
        f"{case}: the error names the model {told['model_path']!r}",
    )
    if case == "no-memory":
        fields(told, {"required_bytes": "count", "available_bytes": "count"}, case)
        need(told["required_bytes"] > told["available_bytes"], f"{case}: required ≤ available")
    return passed(f"{case}: exit code 1, {told['code']}: {told['message']}")


def _bad_arguments(observation: Observation, limits: Limits) -> Finding:
    ended = fact(observation, "exit")
    _check_exit(ended, 2)
    need(bool(ended["stderr"].strip()), "nothing says what is wrong with the arguments")
    return passed(f"{_case(observation)}: exit code 2")


def _check_exit(ended: Mapping[str, Json], code: int) -> None:
    need(not ended["timed_out"], f"it did not end within {ended['duration_s']:.0f} s")
    need(ended["code"] == code, f"exit code {ended['code']}, wanted {code}")
    said = ended["stdout"] + ended["stderr"]
    need("Traceback (most recent call last)" not in said, "it ended with a traceback")
    need(ended["duration_s"] <= MAX_FAIL_S, f"it took {ended['duration_s']:.1f} s to fail")


def _case(observation: Observation) -> str:
    return observation.test.partition("[")[2].removesuffix("]")


@judge
def judge_progress(observation: Observation, limits: Limits) -> Finding:
    """0, 25, 50, 75, 100 %, once each, with bytes that grow to the file's own."""
    lines = narration(fact(observation, "log_lines"))
    told = [line for line in lines if line.get("event") == "model_load_progress"]
    for line in told:
        fields(line, {"percent": "count", "bytes_loaded": "count", "bytes_total": "count"}, "load")
    percents = [line["percent"] for line in told]
    need(percents == _PERCENTS, f"load progress {percents}, wanted {_PERCENTS}")
    total, size = told[0]["bytes_total"], fact(observation, "model_bytes")
    need(0.9 * size <= total <= size, f"bytes_total {total}, the file has {size}")
    for line in told:
        need(line["bytes_total"] == total, "bytes_total changes during the load")
        loaded, percent = line["bytes_loaded"], line["percent"]
        need(loaded * 100 >= percent * total, f"{percent} % told at {loaded} of {total} bytes")
        need(percent == 0 or loaded > 0, f"{percent} % told with no byte loaded")
    need(told[-1]["bytes_loaded"] == total, f"the end is told at {told[-1]['bytes_loaded']} bytes")
    return passed(f"0 to 100 % of {total} bytes", bytes_total=total)


@judge
def judge_no_llamacpp(observation: Observation, limits: Limits) -> Finding:
    """Neither a distribution, nor an import, nor a file, nor a mapping is llama.cpp or ggml."""
    counted = {}
    for name, look in _LOOKS.items():
        items = fact(observation, name)
        need(bool(items), f"no {name} were found: the look was no look")
        strange = [item for item in items if look(item)]
        need(not strange, f"{name}: {''.join(strange[:1])} is llama.cpp or ggml")
        counted[name] = len(items)
    need("haikugate" in fact(observation, "distributions"), "haikugate is not in its own closure")
    model = fact(observation, "model_name")
    seen = {
        PurePath(item).name
        for item in (*fact(observation, "maps"), *fact(observation, "open_files"))
    }
    need(model in seen, f"the process has not opened the model {model}: another process was seen")
    return passed("none in " + ", ".join(f"{n} {name}" for name, n in counted.items()), **counted)


JUDGES: Final[Mapping[str, Judge]] = {
    "G1-START-ORDER": judge(_starts),
    "G1-START-CALLBACK": judge(_calls_back),
    "G1-START-FAIL": by_test({"test_start_fails": _fails, "test_bad_arguments": _bad_arguments}),
    "G4-PROGRESS": judge_progress,
    "G1-NO-LLAMACPP": judge_no_llamacpp,
}
