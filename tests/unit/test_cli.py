import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from harness import certify, doctor, gate_commands
from harness.checklist import load_checklists
from harness.cli import app, main
from harness.errors import LaunchError, UsageError
from harness.gpu_lock import lock_gpus
from harness.installation import own_modules
from harness.options import chosen_gpus, refuse_empty
from harness.plugin import OPTIONS
from harness.under_test import EngineOptions, EngineUnderTest, refuse_conflicts
from tests.unit.gate_project import SUITE, GateProject, write_checklists

COMMANDS = ("certify", "verify", "report", "run", "doctor", "config", "models", "keys", "engines")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A command run in this process may change its environment for good, as certify does."""
    with patch.dict(os.environ):
        yield


def test_every_command_has_help() -> None:
    for command in COMMANDS:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0, result.output


def test_the_version_is_said() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == "haikugate 0.1.0\n"


def test_certify_help_shows_every_option_of_a_run() -> None:
    output = CliRunner().invoke(app, ["certify", "--help"]).output
    assert all(flag in output for flag, _ in OPTIONS)


def test_engines_are_listed() -> None:
    output = CliRunner().invoke(app, ["engines", "list"]).output
    assert {line.split()[0] for line in output.splitlines()} >= {"native", "openai"}


def test_config_never_prints_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAIKUGATE_SIGNING_KEY", "-----BEGIN PRIVATE KEY-----\nsecret")
    assert "secret" not in CliRunner().invoke(app, ["config"]).output


def test_an_error_is_one_line_and_its_exit_code() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "harness.cli", "verify", "no/such/bundle"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 3
    assert run.stderr == "haikugate: no/such/bundle: not a bundle: no such folder\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("frob",), "No such command 'frob'; see --help"),
        (("verify",), "Missing argument 'bundle'; see --help"),
        (("certify", "--gate", "5"), "'--gate': Input should be less than or equal to 4"),
        (("certify", "--area", "nonsense"), "--area: wanted one of adapters, "),
        (("certify", "--gate", "2", "--area", "utf8"), "--gate 2 and --area utf8: wanted one"),
        (("certify", "somewhere"), "wanted options alone, got 'somewhere'"),
        (("certify", "--profile", "x"), "argument --profile: invalid choice: 'x'"),
        (("certify", "--bogus"), "unrecognized arguments: --bogus; see haikugate certify --help"),
        (("certify", "--maxfail", "x"), "argument --maxfail: invalid int value: 'x'; see "),
        (("certify", "-c", "/no/such/file"), "Config file '/no/such/file' not found"),
        (("run", "--option", "modle=x"), "experiment: modle: no such field, there are model, "),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(sys, "argv", ["haikugate", *words])
    with pytest.raises(SystemExit) as end:
        main()
    error = capfd.readouterr().err
    assert end.value.code == 2
    assert error.startswith("haikugate: ")
    assert said in error
    assert error.count("\n") == 1


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["haikugate", "doctor"])
    monkeypatch.setattr("harness.doctor.examine", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.environment.gpu_facts", lambda: {"gpus": []})
    missing = doctor.certifiable(doctor.examine())
    assert "CUDA GPU" in missing["gpu"]
    assert "24 GB GPU" in missing["m0"]
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


CERTIFY = """
import conftest, sys
from pathlib import Path
from harness import certify
from harness.errors import UsageError
certify.SUITES = Path("suites").absolute()
try:
    sys.exit(certify.run_gate("gate4", sys.argv[1:]))
except UsageError as error:
    sys.exit(error.exit_code)
"""


def run_certify(project: GateProject, *args: str) -> pytest.RunResult:
    (project.folder / "certify_it.py").write_text(CERTIFY)
    return project.pytester.run(
        *(sys.executable, "certify_it.py", "--profile", "cpu", "--model", "model.gguf"),
        *("--proof-dir", "proofs", *args),
    )


def test_certify_shows_one_line_a_check_and_the_verdict(pytester: pytest.Pytester) -> None:
    project = GateProject(pytester)
    result = run_certify(project)
    assert result.ret == 0, result.stdout.str()
    lines = result.stdout.lines
    for id_ in ("G1-ONE", "G1-TWO", "G2-ONE", "G3-ONE", "G4-ONE"):
        assert sum(line.startswith(f"✓ {id_} ") for line in lines) == 1, result.stdout.str()
    result.stdout.fnmatch_lines(["CERTIFIED: 7 of 7*", "bundle: *"])


def test_certify_shows_what_fails(pytester: pytest.Pytester) -> None:
    project = GateProject(pytester)
    project.suite(SUITE.replace('observe(seen="two")', 'observe(verdict="fail")'))
    result = run_certify(project)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["✗ G1-TWO*", "NOT CERTIFIED*"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--no-such-option",), 2),
        (("--collect-only",), 2),
        (("--version",), 2),
        (("--profile", "moon"), 2),
        (("--launcher", "attach"), 2),
        (("--waivers", "w.toml"), 2),
        (("--signing-key", "absent.pem"), 3),
    ],
)
def test_certify_exit_codes_of_usage_and_harness_errors(
    pytester: pytest.Pytester, arguments: tuple[str, ...], code: int
) -> None:
    assert run_certify(GateProject(pytester), *arguments).ret == code


def test_certify_of_an_interrupted_run_is_130(pytester: pytest.Pytester) -> None:
    project = GateProject(pytester)
    interrupting = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    project.suite(SUITE.replace('observe(seen="two")', interrupting))
    result = run_certify(project)
    assert result.ret == 130
    result.stdout.fnmatch_lines(["✓ G1-ONE*", "NOT CERTIFIED*"])


@pytest.mark.parametrize("gpus", [[], [{"index": 0, "name": "H200", "memory_bytes": 141 << 30}]])
def test_doctor_says_of_each_profile_whether_it_can_be_certified(
    monkeypatch: pytest.MonkeyPatch, gpus: list[dict[str, object]]
) -> None:
    monkeypatch.setattr("harness.environment.gpu_facts", lambda: {"gpus": gpus})
    output = CliRunner().invoke(app, ["doctor"]).output
    said = {line.split(":")[0]: line for line in output.splitlines() if line.startswith("profile")}
    assert set(said) == {"profile cpu", "profile gpu", "profile m0"}
    assert ("cannot" not in said["profile gpu"]) == bool(gpus)
    assert "reference weights" in said["profile m0"]


def test_config_shows_what_the_environment_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAIKUGATE_PROOF_DIR", "/elsewhere")
    output = CliRunner().invoke(app, ["config"]).output
    rows = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert rows["HAIKUGATE_PROOF_DIR"] == "/elsewhere"
    assert "ephemeral" in rows["HAIKUGATE_SIGNING_KEY"]


def test_certify_without_suites_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(certify, "SUITES", tmp_path / "absent")
    with pytest.raises(UsageError, match="not installed"):
        certify.run_gate("gate4", [])


def test_observations_are_written_into_a_checklist_on_demand(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = GateProject(pytester)
    folder = project.folder / "checklists"
    write_checklists(
        folder,
        {
            "G1-ONE": {"any": []},
            "G1-TWO": {"any": ["test_gone"]},
            "G2-ONE": {"any": ["test_two"]},
            "G3-ONE": {"any": []},
        },
    )
    monkeypatch.setattr("harness.checklist.DIRECTORY", folder)
    monkeypatch.setattr(gate_commands, "DIRECTORY", folder)
    tests = gate_commands.collect([project.folder / "suites"])
    assert tests["G1-ONE"] == ["test_one[1]", "test_one[2]"]
    monkeypatch.setattr(gate_commands, "SUITES", project.folder / "suites")
    result = CliRunner().invoke(app, ["gates", "observations", "--write"])
    assert result.exit_code == 0, result.output
    assert "G2-ONE" not in result.output
    load_checklists.cache_clear()
    checks = load_checklists(folder).checks
    assert checks["G1-ONE"].observations == {"any": ("test_one[1]", "test_one[2]")}
    assert checks["G1-TWO"].observations == {"any": ("test_two",)}
    assert checks["G3-ONE"].observations == {"any": ("test_three",)}
    load_checklists.cache_clear()


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions("cpu", launcher="attach"),
        EngineOptions("cpu", launcher="process", url="http://127.0.0.1:1"),
        EngineOptions("cpu", launcher="process", image="an-image"),
        EngineOptions("cpu", launcher="attach", url="http://x", command="serve"),
        EngineOptions("cpu", launcher="attach", url="localhost:8000"),
        EngineOptions("cpu", kind="unknown"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: EngineOptions) -> None:
    with pytest.raises(UsageError):
        refuse_conflicts(options)


@pytest.mark.parametrize(("nonce", "tokenizer"), [("", None), (" ", None), (None, "/nowhere")])
def test_an_empty_nonce_and_an_absent_file_are_refused(
    nonce: str | None, tokenizer: str | None
) -> None:
    with pytest.raises(UsageError):
        refuse_empty(nonce, tokenizer)
    refuse_empty("mine", __file__)


@pytest.mark.parametrize(
    ("words", "profile", "seen", "said"),
    [
        ("9", "cpu", [0], "--gpus 9: profile cpu uses no GPU; take gpu or m0, or no --gpus"),
        ("all", "cpu", [], "profile cpu uses no GPU"),
        ("all", "gpu", [], "--gpus all: no GPU is seen here: no NVML"),
        ("9", "gpu", [0, 1], "--gpus: wanted all or indices among 0, 1, got '9'"),
        ("GPU-abc", "gpu", [], "--gpus: wanted all or device indices, got 'GPU-abc'"),
        (",", "m0", [0], "got ','"),
    ],
)
def test_gpus_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch, words: str, profile: str, seen: list[int], said: str
) -> None:
    facts = {"gpus": [{"index": index} for index in seen], "note": "no NVML"}
    monkeypatch.setattr("harness.environment.gpu_facts", lambda: facts)
    with pytest.raises(UsageError) as refused:
        chosen_gpus(words, profile)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("words", "seen", "chosen"),
    [("", [0], ()), ("all", [0, 1], ("0", "1")), ("1", [0, 1], ("1",)), ("2,5", [], ("2", "5"))],
)
def test_gpus_are_chosen_by_index(
    monkeypatch: pytest.MonkeyPatch, words: str, seen: list[int], chosen: tuple[str, ...]
) -> None:
    facts = {"gpus": [{"index": index} for index in seen], "note": "no NVML"}
    monkeypatch.setattr("harness.environment.gpu_facts", lambda: facts)
    assert chosen_gpus(words, "gpu") == chosen
    assert chosen_gpus("", "cpu") == ()


def test_a_worker_gets_its_gpu() -> None:
    gpus = [EngineOptions("gpu", gpus=("2", "5"), worker=n).gpu for n in range(4)]
    assert gpus == ["2", "5", "2", "5"]


def test_its_engine_sees_that_gpu_alone(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    for worker, index in enumerate(("2", "5", "2")):
        options = EngineOptions("gpu", gpus=("2", "5"), worker=worker)
        spec = EngineUnderTest(options).spec(model)
        assert spec.env == {"CUDA_VISIBLE_DEVICES": index, **own_modules()}
        assert spec.command[-2:] == ("--device", "cuda:0")
    assert EngineUnderTest(EngineOptions("cpu")).spec(model).env == own_modules()
    in_docker = EngineOptions("gpu", launcher="docker", gpus=("2", "5"), worker=1)
    assert EngineUnderTest(in_docker).spec(model).env == {}
    assert in_docker.container_gpus == ("5",)
    assert EngineOptions("gpu", launcher="docker").container_gpus == ()
    assert EngineOptions("cpu", launcher="docker").container_gpus is None


def test_a_foreign_engine_is_identified_by_its_files(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text("one")
    options = EngineOptions("cpu", command=f"{sys.executable} {script} --model {{model}}")
    first = EngineUnderTest(options).identity()
    script.write_text("two")
    second = EngineUnderTest(options).identity()
    assert first["ours"] is False
    assert first["digest"] != second["digest"]


def test_an_identity_names_no_place_of_this_machine(tmp_path: Path) -> None:
    command = f"{sys.executable} {tmp_path}/serve.py --model={{model}} --lib={tmp_path}/x.so a=/b"
    shown = EngineUnderTest(EngineOptions("cpu", command=command)).identity()["command"]
    assert shown == ["python", "serve.py", "--model={model}", "--lib=x.so", "a=/b"]
    ours = EngineUnderTest(EngineOptions("cpu")).identity()["command"]
    assert ours[:3] == ["python", "-m", "engine.cli"]


def test_a_second_run_waits_for_a_gpu(tmp_path: Path) -> None:
    with lock_gpus(["0", "1"], folder=tmp_path):
        with pytest.raises(LaunchError, match="GPU 1: another run holds it"):
            lock_gpus(["1"], wait_s=0.0, folder=tmp_path)
        lock_gpus(["2"], wait_s=0.0, folder=tmp_path).close()
    lock_gpus(["1"], wait_s=0.0, folder=tmp_path).close()
