import sys

import pytest

from tests.unit.gate_project import CHECKS, SUITE, GateProject, write_checklists

SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(7)
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

print("serving", sys.argv[3:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

ENGINE_SUITE = """
import pytest
from harness.launch.logs import lines_after

@pytest.mark.check("G1-ONE")
@pytest.mark.parametrize("size", [1, 2])
def test_one(engine, observe, size):
    observe(health=engine.client.health(), pid=engine.process_facts()["pid"])

@pytest.mark.check("G1-TWO", "G2-ONE")
def test_two(engine, launch_engine, observe):
    other = launch_engine("--further", "words")
    log = lines_after(other, "serving", 120.0)
    observe(both=[engine.client.health(), other.client.health()], log=log)

@pytest.mark.check("G3-ONE")
def test_three(engine, observe, challenge, nonce, profile):
    drawn = challenge("G3-ONE")
    assert drawn.nonce == nonce and profile.name == "cpu"
    observe(word=drawn.code_word)

@pytest.mark.check("G4-ONE")
def test_four(launcher, launch_spec, observe):
    observe(kind=launcher.kind, command=list(launch_spec.command))
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> GateProject:
    project = GateProject(pytester)
    (project.folder / "server.py").write_text(SERVER)
    project.suite(ENGINE_SUITE)
    return project


def command() -> tuple[str, str]:
    return ("--engine-command", f"{sys.executable} server.py {{port}} {{model}}")


def test_an_engine_of_somebody_else_is_launched_observed_and_named(project: GateProject) -> None:
    result = project.run(*command(), "--nonce", "a reviewer's")
    assert result.ret == 0, result.stdout.str()
    assert project.verdicts() == {
        **dict.fromkeys(CHECKS, "pass"),
        "G4-TRACE": "not_applicable",
        "G4-GATES-1-3": "not_applicable",
    }
    metadata = project.bundle.metadata
    assert metadata["engine"]["ours"] is False
    assert metadata["nonce"] == "a reviewer's"
    assert metadata["models"][0]["bytes"] == len(b"a model")
    assert b"serving" in project.bundle.read("engine.ndjson")
    assert {"check": "G3-ONE", "attempt": 1, "worker": "main"} in list(project.bundle.seeds())
    seen = {o.test: o for o in project.bundle.observations() if o.check in ("G1-ONE", "G1-TWO")}
    assert seen["test_one[1]"].facts == seen["test_one[2]"].facts
    assert seen["test_two"].facts["log"][0] == "serving ['--further', 'words']"
    pids = {exchange.body for exchange in seen["test_two"].exchanges["both"]}
    assert len(pids) == 2


def test_after_an_engine_died_every_test_of_it_is_an_error(project: GateProject) -> None:
    dying = 'engine.client.raw("GET", "/die"); observe(x=1)'
    two = ENGINE_SUITE.index("    other = launch_engine")
    end = ENGINE_SUITE.index('\n@pytest.mark.check("G3-ONE")')
    project.suite(f"{ENGINE_SUITE[:two]}    {dying}\n{ENGINE_SUITE[end:]}")
    result = project.run(*command())
    assert result.ret == 1
    assert project.verdicts()["G1-ONE"] == "pass"
    assert project.verdicts()["G1-TWO"] == "error", "the test in which it died"
    assert project.verdicts()["G3-ONE"] == "error"
    assert project.verdicts()["G4-ONE"] == "pass"
    result.stdout.fnmatch_lines(["*the engine under test died*"])


def test_an_engine_that_dies_in_the_last_test_is_an_error(project: GateProject) -> None:
    dying = """
@pytest.mark.check("G4-ONE")
def test_last(engine, observe):
    observe(x=1)
    engine.client.raw("GET", "/die")
"""
    project.suite(ENGINE_SUITE[: ENGINE_SUITE.index('\n@pytest.mark.check("G4-ONE")')] + dying)
    result = project.run(*command())
    assert result.ret == 1
    assert project.verdicts()["G4-ONE"] == "error"
    assert project.verdicts()["G3-ONE"] == "pass"


def test_an_engine_that_closes_its_door_but_runs_on_is_not_there(project: GateProject) -> None:
    closing = SERVER.replace("os._exit(7)", "self.server.socket.close(); time.sleep(60)")
    (project.folder / "server.py").write_text(closing.replace("os, sys", "os, sys, time"))
    shut = """
    engine.client.raw("GET", "/die", limits=TransportLimits(total_s=1.0))
    observe(x=1)
"""
    two = ENGINE_SUITE.index("    other = launch_engine")
    end = ENGINE_SUITE.index('\n@pytest.mark.check("G3-ONE")')
    imports = "from harness.transport import TransportLimits"
    project.suite(f"{imports}\n{ENGINE_SUITE[:two]}{shut}{ENGINE_SUITE[end:]}")
    result = project.run(*command())
    assert result.ret == 1
    assert project.verdicts()["G3-ONE"] == "error"
    result.stdout.fnmatch_lines(["*the engine under test no longer answers*"])


def test_an_engine_that_does_not_start_makes_errors_not_passes(project: GateProject) -> None:
    result = project.run("--engine-command", f"{sys.executable} absent.py {{port}}")
    assert result.ret == 1
    assert project.verdicts()["G1-ONE"] == "error"
    assert project.verdicts()["G4-ONE"] == "pass"


def test_each_worker_has_an_engine_of_its_own(project: GateProject) -> None:
    result = project.run(*command(), "-n", "2", "--dist", "each")
    assert result.ret == 1  # each test ran twice: the same observation cannot be written twice
    (project.folder / "proofs").rename(project.folder / "first")
    result = project.run(*command(), "-n", "2")
    assert result.ret == 0, result.stdout.str()


def test_an_empty_gate_fails_and_says_so(project: GateProject) -> None:
    project.suite("")
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*blocked: no gate test was collected here*"])


def test_an_engine_kind_that_cannot_show_a_check_makes_it_not_applicable(
    project: GateProject,
) -> None:
    checklists = project.folder / "checklists"
    write_checklists(checklists, CHECKS)
    path = checklists / "gate4.toml"
    path.write_text(path.read_text().replace('["native", "openai"]', '["openai"]', 1))
    result = project.run(*command())
    assert result.ret == 1  # its checklist is edited, and no other check of gate 4 is left
    assert project.verdicts()["G4-ONE"] == "not_applicable"


def test_the_plain_suite_needs_no_engine(pytester: pytest.Pytester) -> None:
    project = GateProject(pytester)
    project.suite(SUITE)
    assert project.run("--engine-command", "absent-engine {port}").ret == 0
