"""The workflows: valid, pinned, and every command that they run exists; each rule can fail."""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.judges.ci import JUDGES
from harness.observation import Observation, Verdict
from suites import test_ci

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SYSTEM_COMMANDS = {"docker", "nvidia-smi", "python", "cp", "mkdir", "gzip", "cd", "sha256sum"}
OUR_COMMANDS = {"haikugate": "harness/cli.py", "haikugate-engine": "engine/cli.py"}


def run_lines(path: Path) -> list[str]:
    flow = yaml.safe_load(path.read_text())
    runs = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    lines = [line.strip() for run in runs for line in run.splitlines()]
    return [line for line in lines if line]


LINES = [(path.name, line) for path in WORKFLOWS for line in run_lines(path)]


@pytest.mark.parametrize(("workflow", "line"), LINES)
def test_every_command_of_a_workflow_exists(workflow: str, line: str) -> None:
    for part in re.split(r"&&|\|", line):
        words = shlex.split(part.split(">")[0])
        command = Path(words[0]).name
        if command == "make":
            assert_make_target(words[1])
        elif command in OUR_COMMANDS:
            assert_subcommand(command, words[1:])
        else:
            assert command in SYSTEM_COMMANDS, f"{workflow}: {command}"


@pytest.mark.parametrize(("workflow", "line"), LINES)
def test_every_file_that_a_workflow_names_exists(workflow: str, line: str) -> None:
    for word in shlex.split(line):
        if re.fullmatch(r"(tests|suites|harness|engine|\.ci)/[\w./-]+|Dockerfile\.\w+", word):
            assert (ROOT / word).exists(), f"{workflow}: {word}"


def test_the_image_has_the_targets_and_arguments_that_workflows_use() -> None:
    dockerfile = (ROOT / "Dockerfile.gpu").read_text()
    for _, line in LINES:
        for target in re.findall(r"--target (\S+)", line):
            assert f" AS {target}\n" in dockerfile
        for name in re.findall(r"--build-arg (\w+)=", line):
            assert re.search(rf"(?m)^ARG {name}\b", dockerfile)


def test_extras_that_are_installed_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    used = {name for _, line in LINES for found in re.findall(r"EXTRAS=([\w,]+)", line)
            for name in found.split(",")}  # fmt: skip
    used |= {name for _, line in LINES for name in re.findall(r"\.whl\)\[(\w+)\]", line)}
    assert used
    assert used <= extras.keys()


def assert_make_target(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    pattern = re.sub(r"[^/]+(?=\.stamp$)", "%", target)
    assert re.search(rf"(?m)^({re.escape(target)}|{re.escape(pattern)}):", makefile), target


def assert_subcommand(command: str, arguments: list[str]) -> None:
    path = ROOT / OUR_COMMANDS[command]
    if not path.is_file():
        pytest.skip(f"{path.name} of {command} is not written yet")
    if arguments[0].startswith("-"):
        return
    import importlib

    import typer

    app = importlib.import_module(OUR_COMMANDS[command][:-3].replace("/", ".")).app
    tree: Any = typer.main.get_command(app)
    for word in arguments[:2]:
        if not hasattr(tree, "commands"):
            return
        assert word in tree.commands, f"{command} has no {word}"
        tree = tree.commands[word]


def observed(test: Callable[..., None], check: str, **fixtures: Any) -> Observation:
    facts: dict[str, Any] = {}
    test(ROOT, observe=facts.update, **fixtures)
    return Observation(check, test.__name__, facts=facts)


@pytest.fixture(scope="module")
def valid() -> Observation:
    seen = observed(test_ci.test_workflows_are_valid, "G4-CI-WORKFLOW")
    readme = {**seen.facts["build_files"], "README.md": "make gate4\nmake test\n"}
    return replace(seen, facts={**seen.facts, "build_files": readme})


def verdict(observation: Observation) -> tuple[Verdict, str]:
    finding = JUDGES[observation.check](observation, {})
    return finding.verdict, finding.message


def edited(seen: Observation, name: str, old: str, new: str) -> Observation:
    flows = dict(seen.facts["workflows"])
    assert old in flows[name]
    flows[name] = flows[name].replace(old, new)
    return replace(seen, facts={**seen.facts, "workflows": flows})


def test_the_workflows_pass_schema_linter_and_rules(valid: Observation) -> None:
    assert verdict(valid)[0] == Verdict.PASS, verdict(valid)[1]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ci.yml", "  pull_request:\n", ""),
        ("gpu-ci.yml", '"0 2 * * 1"', '"0 3 * * 1"'),
        ("gpu-ci.yml", "branches: [main]", "branches: [dev]"),
        ("gpu-ci.yml", "  workflow_dispatch:\n", ""),
        ("gpu-ci.yml", "timeout-minutes: 30", "timeout-minutes: 31"),
        ("ci.yml", "08c6903cd8c0fde910a37f88322edcfb5dd907a8", "v5"),
        ("ci.yml", "  contents: read", "  contents: write"),
        ("ci.yml", "run: make gate4", "run: make gate5"),
        ("ci.yml", "run: make lint", "run: make lynt"),
        ("release.yml", "jobs:", "jabs:"),
        ("ci.yml", "jobs:", "jobs: ["),
    ],
)
def test_a_damaged_workflow_fails(valid: Observation, name: str, old: str, new: str) -> None:
    assert verdict(edited(valid, name, old, new))[0] == Verdict.FAIL


def test_findings_of_the_tools_fail_and_missing_tools_are_an_error(valid: Observation) -> None:
    outcome = {"command": ["zizmor"], "code": 13, "output": "1 high"}
    assert verdict(replace(valid, facts={**valid.facts, "audit": outcome}))[0] == Verdict.FAIL
    absent = {**outcome, "code": None}
    assert verdict(replace(valid, facts={**valid.facts, "audit": absent}))[0] == Verdict.ERROR


def test_the_schema_really_refuses_a_wrong_workflow(tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("on: push\njobs: {a: {runs-on: x, stepz: []}}\n")
    tool = test_ci.tool("check-jsonschema")
    seen = test_ci.outcome(
        tool, "--builtin-schema", "vendor.github-workflows", "bad.yml", cwd=tmp_path
    )
    assert seen["code"] == 1


def test_the_tests_are_run_on_hosts_and_on_the_gpu() -> None:
    seen = observed(test_ci.test_workflows_run_the_tests, "G4-CI-TESTS")
    assert verdict(seen)[0] == Verdict.PASS, verdict(seen)[1]
    for name, old, new in (
        ("ci.yml", '"3.12", "3.13"]', '"3.12"]'),
        ("ci.yml", "run: make test", "run: 'true'"),
        ("gpu-ci.yml", "pytest tests/integration -m gpu", "pytest tests/integration -m cpu"),
        ("gpu-ci.yml", "docker run --rm --gpus all", "docker run --rm"),
        ("gpu-ci.yml", "self-hosted, ", ""),
    ):
        assert verdict(edited(seen, name, old, new))[0] == Verdict.FAIL, old
    none = replace(seen, facts={**seen.facts, "device_tests": []})
    assert verdict(none)[0] == Verdict.FAIL


def test_bundle_and_junit_are_uploaded_whatever_the_verdict() -> None:
    seen = observed(test_ci.test_workflows_keep_the_evidence, "G4-CI-ARTIFACTS")
    assert verdict(seen)[0] == Verdict.PASS, verdict(seen)[1]
    for name, old, new in (
        ("ci.yml", "path: proofs/", "path: logs/"),
        ("ci.yml", "if: always()", "if: success()"),
        ("gpu-ci.yml", "            junit-gpu.xml\n", ""),
        ("gpu-ci.yml", "--launcher docker", "--launcher process"),
        ("gpu-ci.yml", "if-no-files-found: error", "if-no-files-found: ignore"),
    ):
        assert verdict(edited(seen, name, old, new))[0] == Verdict.FAIL, old


def test_the_image_definition_is_judged(tmp_path: Path) -> None:
    done = {"command": ["pip"], "code": 0, "output": "True True True True\n"}
    seen = Observation(
        "G4-CI-DEPLOY",
        "test_the_wheel_builds_and_installs",
        facts={
            **dict.fromkeys(("build", "install", "imported"), done),
            "wheels": {"haikugate-1-py3-none-any.whl": "00"},
            "installed": [f"harness/checklists/gate{n}.toml" for n in (1, 2, 3, 4)],
            "dockerfile": test_ci.texts(ROOT, ("Dockerfile.gpu",)),
            "workflows": test_ci.workflows(ROOT),
        },
    )
    assert verdict(seen)[0] == Verdict.PASS, verdict(seen)[1]
    text = seen.facts["dockerfile"]["Dockerfile.gpu"]
    for old, new in (("USER 10001:10001", "USER root"), ("@sha256:", "#"), ("HEALTHCHECK", "RUN"),
                     ('"serve"]', '"bench"]')):  # fmt: skip
        assert old in text
        bad = {**seen.facts, "dockerfile": {"Dockerfile.gpu": text.replace(old, new)}}
        assert verdict(replace(seen, facts=bad))[0] == Verdict.FAIL, old
    for fact, value in (
        ("build", {**done, "code": 1}),
        ("wheels", {}),
        ("installed", []),
        ("imported", {**done, "output": "True False True True"}),
    ):
        assert verdict(replace(seen, facts={**seen.facts, fact: value}))[0] == Verdict.FAIL


def test_tools_are_those_of_this_installation() -> None:
    assert Path(test_ci.tool("check-jsonschema")).parent == Path(sys.executable).parent
