"""Judges of continuous integration: workflows, what they run and keep, wheel and image."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from harness.judges.rule import Broken, Unseen, fact, judge, need, passed
from harness.observation import Finding, Json, Judge, Limits, Observation

PYTHONS: Final = ("3.11", "3.12", "3.13")
GPU_MINUTES: Final = 30
WEEKLY: Final = "0 2 * * 1"
README_COMMANDS: Final = ("make gate4", "make test")
PINNED: Final = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
CHECKLISTS: Final = tuple(f"harness/checklists/gate{gate}.toml" for gate in (1, 2, 3, 4))
DEVICE_TESTS: Final = "pytest tests/integration -m gpu"
GPU_GATE: Final = ("pytest -m gate4", "--launcher docker", "--gpus all")


@judge
def workflow(observation: Observation, limits: Limits) -> Finding:
    """Valid by schema and linter, triggered as required, least rights, README's commands run."""
    flows = _workflows(observation)
    _clean(fact(observation, "schema"), "the workflow schema")
    _clean(fact(observation, "audit"), "the workflow linter")
    _triggers(flows)
    for name, flow in flows.items():
        need(flow.get("permissions") == {"contents": "read"}, f"{name}: permissions are not read")
        need("concurrency" in flow, f"{name}: has no concurrency group")
        for action in _values(flow, "uses"):
            need(bool(PINNED.fullmatch(action)), f"{name}: {action} is not pinned by commit")
    for name, job in _jobs(flows["gpu-ci.yml"]).items():
        minutes = float(job.get("timeout-minutes", "inf"))
        need(minutes <= GPU_MINUTES, f"gpu-ci.yml: {name} may run {minutes} min")
    files = _table(observation, "build_files")
    _commands(flows, files)
    return passed("schema and linter have no finding; triggers, rights, pins and commands hold")


@judge
def tests(observation: Observation, limits: Limits) -> Finding:
    """Host tests on every push and every Python; device tests on the GPU runner."""
    flows = _workflows(observation)
    _triggers(flows)
    job = _job_running(flows["ci.yml"], "make test")
    matrix = ((job.get("strategy") or {}).get("matrix") or {}).get("python")
    need(tuple(matrix or ()) == PYTHONS, f"ci.yml: tests run on Python {matrix}, wanted {PYTHONS}")
    recipe = _recipe(_table(observation, "makefile").get("Makefile", ""), "test")
    need("pytest tests" in recipe, f"Makefile: test runs no `pytest tests`: {recipe!r}")
    host, device = fact(observation, "host_tests"), fact(observation, "device_tests")
    need(bool(host), "tests/unit holds no test")
    need(bool(device), "tests/integration/gpu holds no test")
    on_gpu = _job_running(flows["gpu-ci.yml"], DEVICE_TESTS)
    need("self-hosted" in (on_gpu.get("runs-on") or ()), "gpu-ci.yml: no self-hosted runner")
    line = next(line for line in _runs(on_gpu) if DEVICE_TESTS in line)
    need("--gpus all" in line, f"gpu-ci.yml: the device tests see no GPU: {line!r}")
    return passed(f"{len(host)} host test files on {len(PYTHONS)} Pythons, {len(device)} on a GPU")


@judge
def artifacts(observation: Observation, limits: Limits) -> Finding:
    """The bundle is uploaded whatever the verdict, and on the GPU the JUnit file too."""
    flows = _workflows(observation)
    cpu = _upload(_job_running(flows["ci.yml"], "make gate4"), "make gate4", "ci.yml")
    need("proofs/" in cpu, f"ci.yml: uploads {cpu!r}, wanted proofs/")
    gate = _job_running(flows["gpu-ci.yml"], GPU_GATE[0])
    line = next(line for line in _runs(gate) if GPU_GATE[0] in line)
    for word in GPU_GATE:
        need(word in line, f"gpu-ci.yml: the gate runs without {word!r}: {line!r}")
    junit = re.search(r"--junitxml[ =](\S+)", line)
    if junit is None:
        raise Broken(f"gpu-ci.yml: the gate writes no JUnit file: {line!r}")
    kept = _upload(gate, GPU_GATE[0], "gpu-ci.yml").split()
    need({"proofs/", junit[1]} <= set(kept), f"gpu-ci.yml: uploads {kept}")
    return passed("bundle and JUnit file are uploaded after every gate run")


@judge
def deploy(observation: Observation, limits: Limits) -> Finding:
    """The wheel builds, installs and imports; the image's definition is sound and is built."""
    _clean(fact(observation, "build"), "building the wheel")
    wheels = _table(observation, "wheels")
    need(len(wheels) == 1, f"the build made {sorted(wheels)}, wanted one wheel")
    _clean(fact(observation, "install"), "installing the wheel")
    imported = fact(observation, "imported")
    _clean(imported, "importing the installed packages")
    need(imported["output"].split() == ["True"] * 4, f"imported elsewhere: {imported['output']}")
    missing = set(CHECKLISTS) - set(fact(observation, "installed"))
    need(not missing, f"the wheel lacks {sorted(missing)}")
    _image(_table(observation, "dockerfile").get("Dockerfile.gpu", ""))
    flows = _workflows(observation)
    for name, wanted in (
        ("ci.yml", "pip wheel"),
        ("ci.yml", "docker build --file Dockerfile.gpu"),
        ("gpu-ci.yml", "docker build --file Dockerfile.gpu"),
        ("release.yml", "pip wheel"),
        ("release.yml", "docker build --file Dockerfile.gpu"),
    ):
        need(any(wanted in line for line in _runs(flows[name])), f"{name}: runs no `{wanted}`")
    return passed(f"{next(iter(wheels))} builds, installs and imports; the workflows build both")


JUDGES: Mapping[str, Judge] = {
    "G4-CI-WORKFLOW": workflow,
    "G4-CI-TESTS": tests,
    "G4-CI-ARTIFACTS": artifacts,
    "G4-CI-DEPLOY": deploy,
}


def _workflows(observation: Observation) -> dict[str, dict[str, Any]]:
    texts = _table(observation, "workflows")
    missing = {"ci.yml", "gpu-ci.yml", "release.yml"} - texts.keys()
    need(not missing, f".github/workflows lacks {sorted(missing)}")
    return {name: _parsed(name, text) for name, text in texts.items()}


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        flow = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  (strings only)
    except yaml.YAMLError as error:
        raise Broken(f"{name}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(flow, dict) or not isinstance(flow.get("jobs"), dict):
        raise Broken(f"{name}: no workflow: it has no jobs")
    if not all(isinstance(job, dict) for job in flow["jobs"].values()):
        raise Broken(f"{name}: a job is no mapping")
    return flow


def _table(observation: Observation, name: str) -> dict[str, str]:
    table = fact(observation, name)
    if not isinstance(table, dict):
        raise Unseen(f"{name} is no table of files")
    return table


def _clean(outcome: Json, what: str) -> None:
    if outcome.get("code") is None:
        raise Unseen(f"{what}: {outcome['command'][0]} cannot be run: {outcome['output'][-300:]}")
    need(outcome["code"] == 0, f"{what}: exit code {outcome['code']}: {outcome['output'][-800:]}")


def _triggers(flows: Mapping[str, Mapping[str, Any]]) -> None:
    ci, gpu, release = (flows[name].get("on") for name in ("ci.yml", "gpu-ci.yml", "release.yml"))
    if not all(isinstance(on, dict) for on in (ci, gpu, release)):
        raise Broken("a workflow's triggers are no mapping")
    assert isinstance(ci, dict)
    assert isinstance(gpu, dict)
    assert isinstance(release, dict)
    need({"push", "pull_request"} <= ci.keys(), f"ci.yml: runs on {sorted(ci)}")
    need(not ci["push"] and not ci["pull_request"], "ci.yml: not on every push and pull request")
    need((gpu.get("push") or {}).get("branches") == ["main"], "gpu-ci.yml: not on push to main")
    crons = [entry.get("cron") for entry in gpu.get("schedule") or ()]
    need(crons == [WEEKLY], f"gpu-ci.yml: scheduled {crons}, wanted Monday 02:00 UTC")
    need("workflow_dispatch" in gpu, "gpu-ci.yml: cannot be started by hand")
    need("tags" in (release.get("push") or {}), "release.yml: not on a tag")


def _commands(flows: Mapping[str, Mapping[str, Any]], files: Mapping[str, str]) -> None:
    ci = _runs(flows["ci.yml"])
    for command in README_COMMANDS:
        need(command in files.get("README.md", ""), f"README.md does not show `{command}`")
        need(command in ci, f"ci.yml does not run the README's `{command}`")
    makefile = files.get("Makefile", "")
    for name, flow in flows.items():
        for line in _runs(flow):
            for target in re.findall(r"(?m)^make (\S+)", line):
                need(_has_target(makefile, target), f"{name}: the Makefile has no {target}")


def _has_target(makefile: str, target: str) -> bool:
    patterns = re.findall(r"(?m)^([^\s:=#][^:=]*):(?!=)", makefile)
    names = {name for pattern in patterns for name in pattern.split()}
    return any(
        re.fullmatch(re.escape(name).replace("%", r"\S+"), target) is not None for name in names
    )


def _recipe(makefile: str, target: str) -> str:
    found = re.search(rf"(?m)^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile + "\n")
    return found[1] if found else ""


def _jobs(flow: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    jobs: Mapping[str, Mapping[str, Any]] = flow["jobs"]
    return jobs


def _job_running(flow: Mapping[str, Any], command: str) -> Mapping[str, Any]:
    for job in _jobs(flow).values():
        if any(command in line for line in _runs(job)):
            return job
    raise Broken(f"{flow.get('name')}: no job runs `{command}`")


def _runs(part: Any) -> list[str]:
    return list(_values(part, "run"))


def _values(part: Any, key: str) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(part, list):
        for item in part:
            yield from _values(item, key)


def _upload(job: Mapping[str, Any], command: str, name: str) -> str:
    steps = [step for step in job.get("steps") or () if isinstance(step, dict)]
    ran = next(i for i, step in enumerate(steps) if command in step.get("run", ""))
    for step in steps[ran + 1 :]:
        if step.get("uses", "").startswith("actions/upload-artifact@"):
            need(step.get("if") == "always()", f"{name}: no upload after a failed gate")
            options = step.get("with") or {}
            need(options.get("if-no-files-found") == "error", f"{name}: an empty upload passes")
            return str(options.get("path", ""))
    raise Broken(f"{name}: nothing is uploaded after `{command}`")


def _image(dockerfile: str) -> None:
    lines = dockerfile.replace("\\\n", " ").splitlines()
    words = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    last = {word[0]: word[1] for word in words if len(word) == 2}
    stages = sum(word[0] == "FROM" for word in words)
    need(stages >= 2, f"Dockerfile.gpu: {stages} stages, wanted a build and a runtime stage")
    pinned = re.search(r"(?m)^ARG BASE_IMAGE=\S+:\S+@sha256:[0-9a-f]{64}$", dockerfile)
    need(pinned is not None, "Dockerfile.gpu: the base image is not pinned by tag and digest")
    user = last.get("USER", "root").partition(":")[0]
    need(user not in ("", "0", "root"), f"Dockerfile.gpu: the engine runs as {user}")
    need(last.get("ENTRYPOINT") == '["haikugate-engine", "serve"]', "Dockerfile.gpu: ENTRYPOINT")
    need("HEALTHCHECK" in last, "Dockerfile.gpu: no HEALTHCHECK")
    labels = last.get("LABEL", "")
    need("org.opencontainers.image.revision" in labels, "Dockerfile.gpu: no OCI labels")
