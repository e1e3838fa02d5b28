"""Gate 4: the documents: what they list beside what the engine has, what they show tried out.

The subject is the project's own checkout: a wheel holds no documents.
"""

import posixpath
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import models
from harness.clients.http import answer
from harness.closure import imported_modules, project_files
from harness.documents import commands, links
from harness.errors import HaikugateError
from harness.judges.docs import PAGES
from harness.launch import Launcher, LaunchSpec, RunningEngine
from harness.launch.attach import AttachLauncher
from harness.launch.docker_daemon import connect, meaning
from harness.launch.process import ProcessLauncher, free_port
from harness.observation import Exchange, Observe
from harness.transport import Endpoint
from suites.probes import probe
from suites.shown_commands import PLAIN, run, try_all

PACKAGES = ("harness", "engine", "kernels", "suites")
OURS = frozenset((*PACKAGES, "tests"))
HELP_S = 60.0


@pytest.fixture(scope="module")
def checkout() -> Path:
    """The project's checkout: where these suites live, unless they were installed as a wheel."""
    root = Path(__file__).parent.parent
    if not ((root / "docs").is_dir() and (root / "pyproject.toml").is_file()):
        pytest.skip(f"{root} is no checkout of the project: a wheel holds no documents")
    return root


def pages_of(check: str, root: Path) -> dict[str, str]:
    """The text of each page of a check that is there."""
    names = set(PAGES[check])
    if check == "G4-DOCS-DEV":
        others = {name for pages in PAGES.values() for name in pages}
        every = {path.relative_to(root).as_posix() for path in (root / "docs").glob("*.md")}
        names |= every - others
    return {name: (root / name).read_text("utf-8") for name in sorted(names)
            if (root / name).is_file()}  # fmt: skip


def shown(check: str, root: Path) -> dict[str, Any]:
    """What every judge of documents needs: pages, the files they name, their commands tried."""
    pages = pages_of(check, root)
    named = {path for name, text in pages.items() for path in paths_named(name, text)}
    return {
        "pages": pages,
        "files": sorted(path for path in named if (root / path).exists()),
        "runs": try_all([line for text in pages.values() for line in commands(text)], root),
    }


def paths_named(name: str, text: str) -> Iterator[str]:
    """Where the links of a page lead, and every word of its commands, inside the checkout."""
    targets = (target.partition("#")[0] for target in links(text))
    for target in targets:
        yield posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    for command in commands(text):
        yield from (word for word in command.split() if not word.startswith(("/", "-", "$", '"')))


@pytest.mark.check("G4-DOCS-API")
def test_engine_api(
    checkout: Path,
    launcher: Launcher,
    launch_spec: LaunchSpec,
    engine: RunningEngine,
    observe: Observe,
) -> None:
    cases = probe(launcher, launch_spec, "api")["cases"]
    health = engine.client.health()
    routes = [(case["method"], case["route"]) for case in cases if "method" in case]
    execute = engine.client.execute(prompt="Once", max_tokens=2, temperature=0.0, logprobs=1)
    observe(
        **shown("G4-DOCS-API", checkout),
        probe=cases,
        help=help_of_serve(launcher, launch_spec),
        health=health,
        execute=execute,
        routes=knocked(engine, routes, answer(health)["model"]),
        no_route=engine.client.raw("GET", "/no-such-route"),
    )


def knocked(engine: RunningEngine, routes: list[tuple[str, str]], model: str) -> list[Exchange]:
    """Each route asked with another method, and, but for the shutdown, with its own."""
    paths = [(method, route.replace("{model:path}", model)) for method, route in routes]
    others = [engine.client.raw("DELETE", path) for _, path in paths]
    own = [
        engine.client.raw(method, path, b"{}" if method == "POST" else b"")
        for method, path in paths
        if path != "/shutdown"
    ]
    return others + own


def help_of_serve(launcher: Launcher, spec: LaunchSpec) -> dict[str, Any]:
    """What `serve --help` prints where the engine is launched."""
    start = spec.command[: spec.command.index("serve") + 1]
    env = {**spec.env, **PLAIN}
    ended = launcher.run_to_exit(replace(spec, command=(*start, "--help"), env=env), HELP_S)
    return {"code": ended.code, "output": ended.stdout}


@pytest.mark.check("G4-DOCS-ARCH")
def test_architecture(checkout: Path, observe: Observe) -> None:
    files = project_files(checkout, (*PACKAGES, "tests"))
    observe(
        **shown("G4-DOCS-ARCH", checkout),
        modules=[path.relative_to(checkout).as_posix() for path in files],
        imports=imports(checkout),
    )


def imports(root: Path) -> dict[str, list[str]]:
    """By package, the packages of this project that its modules import, lazily or not."""
    found = {}
    for package in PACKAGES:
        files = project_files(root, (package,))
        apart = [path for path in files if path.match("engine/backends/cuda*.py")]
        groups = {package: [path for path in files if path not in apart]}
        if apart:
            groups["engine/backends/cuda"] = apart
        for name, members in groups.items():
            modules = {module.partition(".")[0] for module in imported_modules(members)}
            found[name] = sorted(modules & OURS)
    return found


@pytest.mark.check("G4-DOCS-USER")
def test_user_guide(
    checkout: Path,
    engine: RunningEngine,
    observe: Observe,
) -> None:
    asked = {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 0.0}
    known = models.known_by_digest(engine.model_sha256)
    health = answer(engine.client.health())
    observe(
        **shown("G4-DOCS-USER", checkout),
        help=run([sys.executable, "-m", "harness.cli", "--help"], checkout),
        run_options=[plugin_options(checkout)],
        registered=list(models.registry()),
        under_test={"model": known.name if known else None, "device": health["device"]},
        twice=[engine.client.execute(**asked) for _ in range(2)],
    )


def plugin_options(root: Path) -> str:
    """The part of `pytest --help` that this project adds."""
    output: str = run([sys.executable, "-m", "pytest", "--help"], root)["output"]
    return output.partition("haikugate: certify")[2].partition("\n\n")[0]


@pytest.mark.check("G4-DOCS-DEV")
def test_developer_guide(checkout: Path, observe: Observe) -> None:
    makefile = (checkout / "Makefile").read_text("utf-8")
    observe(**shown("G4-DOCS-DEV", checkout), makefile=makefile)


@pytest.mark.check("G4-DOCS-TROUBLE")
def test_troubleshooting(
    checkout: Path,
    launcher: Launcher,
    launch_spec: LaunchSpec,
    monkeypatch: pytest.MonkeyPatch,
    observe: Observe,
) -> None:
    said = {name: message(provoke) for name, provoke in launches(launch_spec.model_path).items()}
    for name, host in {
        "docker-down": "unix:///no/such.sock",
        "docker-elsewhere": "tcp://x",
    }.items():
        monkeypatch.setenv("DOCKER_HOST", host)
        said[name] = message(connect)
    observe(
        **shown("G4-DOCS-TROUBLE", checkout),
        probe=probe(launcher, launch_spec, "api")["cases"],
        launch_errors={**said, **{name: meaning(words) for name, words in REFUSALS.items()}},
    )


REFUSALS = {
    "docker-permission": "dial unix /var/run/docker.sock: connect: permission denied",
    "docker-gpu": 'could not select device driver "" with capabilities: [[gpu]]',
    "docker-port": "Bind for 127.0.0.1:8080 failed: port is already allocated",
    "docker-command": 'exec: "my-engine": executable file not found in $PATH: unknown',
    "docker-disk": "write /layer.tar: no space left on device",
}
"""Docker's own words for what cannot be provoked on every machine."""


def launches(model: Path) -> dict[str, Callable[[], object]]:
    """Launches that fail, each for another reason."""

    def process(*command: str, ready_timeout_s: float = 30.0) -> Callable[[], object]:
        spec = LaunchSpec((*command, "{port}"), model, ready_timeout_s=ready_timeout_s)
        return lambda: ProcessLauncher().launch(spec)

    nobody = AttachLauncher(Endpoint(f"http://127.0.0.1:{free_port()}"))
    python = (sys.executable, "-c")
    return {
        "cannot-start": process("/no/such/engine"),
        "exited-early": process(*python, "import sys; sys.exit('no model')"),
        "not-ready": process(*python, "import time; time.sleep(60)", ready_timeout_s=0.5),
        "no-answer": lambda: nobody.launch(LaunchSpec((), model, ready_timeout_s=0.2)),
        "model-missing": lambda: models.resolve("/no/such/model.gguf"),
    }


def message(provoke: Callable[[], object]) -> str:
    """The one line that the harness says."""
    with pytest.raises(HaikugateError) as caught:
        provoke()
    return str(caught.value)
