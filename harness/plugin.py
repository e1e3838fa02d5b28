"""The pytest plugin: options, hooks and fixtures; the work stays in plain modules."""

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.stash import COLLECTED, SESSION

if TYPE_CHECKING:
    from harness.challenge import Challenge
    from harness.launch import LaunchEngine, Launcher, LaunchSpec, RunningEngine
    from harness.observation import Observe
    from harness.profiles import Profile
    from harness.session import GateSession
    from harness.under_test import EngineUnderTest
    from harness.vocabulary import Vocabulary

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--profile", {"choices": ("cpu", "gpu", "m0"), "help": "what the certificate may claim"}),
    (
        "--launcher",
        {
            "choices": ("process", "docker", "attach"),
            "help": "how the engine comes to run (process; attach if --engine-url, docker if"
            " --image is given)",
        },
    ),
    ("--engine", {"default": "native", "metavar": "KIND", "help": "the API it speaks"}),
    (
        "--engine-command",
        {"default": "", "metavar": "CMD", "help": "command template with {model} and {port}"},
    ),
    ("--engine-url", {"default": "", "metavar": "URL", "help": "an engine that already runs"}),
    ("--image", {"default": "", "help": "the engine's container image"}),
    (
        "--tokenizer",
        {"default": None, "metavar": "FILE", "help": "tokenizer.json, for APIs without token ids"},
    ),
    ("--model", {"action": "append", "metavar": "NAME_OR_PATH", "help": "model; repeatable"}),
    (
        "--ready-timeout",
        {"type": float, "metavar": "SECONDS", "help": "how long a launched engine may load (120)"},
    ),
    ("--gpus", {"default": "", "metavar": "LIST", "help": "GPU indices, worker i gets i mod n"}),
    ("--nonce", {"default": None, "help": "a reviewer's nonce (random if omitted)"}),
    (
        "--calibration",
        {"default": None, "metavar": "FILE", "help": "another calibration than the shipped one"},
    ),
    ("--waivers", {"default": None, "metavar": "FILE", "help": "signed waiver file"}),
    ("--gate-bundles", {"default": None, "metavar": "DIR", "help": "bundles of lower gates"}),
    (
        "--trust-key",
        {"action": "append", "metavar": "PEM", "help": "public key trusted for bundles, waivers"},
    ),
    ("--proof-dir", {"default": None, "metavar": "DIR", "help": "where bundles land (proofs)"}),
    ("--signing-key", {"default": None, "metavar": "PEM", "help": "private key that signs"}),
)

_MARKERS = (
    "check(*ids): the checks of the gates that this test observes",
    *(f"gate{gate}: the checks up to gate {gate}" for gate in (1, 2, 3, 4)),
    "gpu: needs a CUDA GPU",
)

_PATHS = ("FILE", "DIR", "PEM", "NAME_OR_PATH")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("haikugate", "haikugate: certify an inference engine (-m gate4)")
    for flag, settings in OPTIONS:
        dest = f"haikugate_{flag[2:].replace('-', '_')}"
        group.addoption(flag, dest=dest, **settings)


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if config.option.haikugate_calibration is not None:
        _refuse_calibration(Path(config.option.haikugate_calibration))
    if config.option.markexpr and not config.option.collectonly:
        from harness.gate_hooks import register_if_asked

        register_if_asked(config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | pytest.ExitCode | None:
    """Start again with the project's settings where a path given to an option hid them."""
    from harness.project_root import arguments_with_settings

    known = config.known_args_namespace
    if known.inifilename or known.rootdir or not config.option.markexpr:
        return None
    invoked = config.invocation_params
    paths = [flag for flag, settings in OPTIONS if settings.get("metavar") in _PATHS]
    again = arguments_with_settings([str(one) for one in invoked.args], invoked.dir, paths)
    return None if again is None else pytest.main(again, plugins=invoked.plugins)


def _refuse_calibration(path: Path) -> None:
    from harness.calibration import given_calibration
    from harness.errors import CalibrationError

    try:
        given_calibration(path)
    except CalibrationError as error:
        raise pytest.UsageError(str(error)) from None


def _session(config: pytest.Config) -> "GateSession":
    """The run's state; outside a gate run it is made when a suite's test first needs it."""
    session = config.stash.get(SESSION, None)
    if session is None:
        from harness.options import session_from

        session = config.stash[SESSION] = session_from(config, asked=None)
    return session


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [(item, list(item.iter_markers("check"))) for item in items]
    of_gates = [(item, marks) for item, marks in marked if marks or "suites" in item.path.parts]
    if not of_gates:
        return
    from harness.checklist import load_checklists
    from harness.trace import Collected

    for area in sorted(load_checklists().areas):
        config.addinivalue_line("markers", f"{area}: an area of the gates")
    for item, marks in of_gates:
        ids = tuple(str(id_) for mark in marks for id_ in mark.args)
        item.stash[COLLECTED] = Collected(item.nodeid, item.name, ids)
        _derive_markers(item, ids)


def _derive_markers(item: pytest.Item, ids: tuple[str, ...]) -> None:
    """Gate, area and gpu markers come from the checklists, never from the suites."""
    from harness.checklist import load_checklists

    checks = load_checklists().checks
    known = [checks[id_] for id_ in ids if id_ in checks]
    for name in sorted({name for check in known for name in check.marks()}):
        item.add_marker(name)
    if known and not any(check.seen_without_gpu(item.name) for check in known):
        item.add_marker("gpu")


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> "Observe":
    """Record what this test saw, once, for each check it is marked with."""
    session = _session(request.config)
    collected = request.node.stash.get(COLLECTED, None)
    if collected is None:
        pytest.fail("observe() is for tests marked with @pytest.mark.check", pytrace=False)
    attempts = min((check.attempts for check in session.checks_of(collected)), default=1)
    calls = 0

    def record(**named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > attempts:
            pytest.fail(f"observe() called {calls} times, wanted at most {attempts}", pytrace=False)
        found = session.observe(collected, named)
        if session.bundle is None:
            judged = [(id_, f) for id_, f in found if not session.only_reported(id_)]
            wrong = [f"{id_}: {f.verdict}: {f.message}" for id_, f in judged if f.verdict != "pass"]
            if wrong and calls == attempts:
                pytest.fail("\n".join(wrong), pytrace=False)

    return record


@pytest.fixture(scope="session")
def engine_under_test(pytestconfig: pytest.Config) -> "EngineUnderTest":
    """What the command line says is under test."""
    return _session(pytestconfig).under_test


@pytest.fixture(scope="session")
def profile(pytestconfig: pytest.Config) -> "Profile":
    """The profile of this run."""
    return _session(pytestconfig).context.rules


@pytest.fixture(scope="session")
def vocabulary(pytestconfig: pytest.Config) -> "Vocabulary | None":
    """The named tokenizer's vocabulary, for an engine whose API gives no token ids."""
    from harness.vocabulary import Vocabulary

    path = pytestconfig.getoption("haikugate_tokenizer")
    return None if path is None else Vocabulary.from_file(Path(path))


@pytest.fixture(scope="session")
def nonce(pytestconfig: pytest.Config) -> str:
    """The run's nonce, from which challenges are made."""
    return _session(pytestconfig).nonce.value


@pytest.fixture(scope="session")
def calibration(pytestconfig: pytest.Config) -> str | None:
    """The text of the calibration file given, which judges then use; None: the shipped one."""
    given = pytestconfig.getoption("haikugate_calibration")
    if given is None:
        return None
    from harness.calibration import given_calibration

    return given_calibration(Path(given))


@pytest.fixture(scope="session")
def challenge(pytestconfig: pytest.Config) -> Callable[..., "Challenge"]:
    """`challenge(check, attempt=1)`: fresh draws from the run's nonce, kept in the bundle."""
    from harness.challenge import Challenge

    session = _session(pytestconfig)

    def draw(check: str, attempt: int = 1) -> Challenge:
        session.seed(check=check, attempt=attempt)
        return Challenge(session.nonce.value, check, attempt)

    return draw


@pytest.fixture(scope="session")
def launcher(engine_under_test: "EngineUnderTest") -> "Launcher":
    """The launcher that this run uses."""
    return engine_under_test.launcher


@pytest.fixture(scope="session")
def launch_spec(engine_under_test: "EngineUnderTest") -> "LaunchSpec":
    """What is launched by default: suites derive from it what they launch themselves."""
    return engine_under_test.spec()


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator["RunningEngine"]:
    """The engine under test, one a worker; a test that stops an engine launches its own."""
    session = _session(pytestconfig)
    with session.main_engine() as running:
        yield running


@pytest.fixture
def launch_engine(pytestconfig: pytest.Config) -> Iterator["LaunchEngine"]:
    """`launch_engine(*args, model=None, env=None)` launches more; all end with the test."""
    yield from _launching(_session(pytestconfig))


@pytest.fixture(scope="module")
def launch_for_module(pytestconfig: pytest.Config) -> Iterator["LaunchEngine"]:
    """The same for engines that several tests share; all end with the module's last test."""
    yield from _launching(_session(pytestconfig))


def _launching(session: "GateSession") -> Iterator["LaunchEngine"]:
    running: list[RunningEngine] = []

    def launch(
        *args: str, model: Path | None = None, env: Mapping[str, str] | None = None
    ) -> "RunningEngine":
        engine = session.under_test.launch(args, model=model, env=env)
        running.append(engine)
        return engine

    yield launch
    for engine in reversed(running):
        engine.stop()
        session.engine_log("launched", engine.log_lines())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    result = yield
    hooks = session.config.pluginmanager.get_plugin("haikugate-gate")
    if hooks is not None:
        hooks.finish(session)
    return result
