"""Judges of the documents: what they pass, and how each rule fails."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.checklist import load_checklists
from harness.judges.docs import JUDGES, LAUNCH_ERRORS, PAGES
from harness.observation import Exchange, Observation, Verdict
from tests.unit.recorded import exchange, run

API = """# API
| option | meaning |
|---|---|
| `--port` | where |

`POST /execute` and `GET /v1/models/{model:path}`, `POST /shutdown`; fields `prompt`; `worker_up`.

| event | fields |
|---|---|
| `started` | `job_id, model, started_at, seed, prompt_tokens, cached_tokens` |
| `token` | `t, i, id` |
| `metrics` | `prefill_ms, decode_ms, tokens_out, kv_cache_bytes` |
| `end` | `tokens_out, decode_time_ms, finish_reason, dropped_bytes` |
| `error` | `code, message` |

| code | status | when |
|---|---|---|
| `INTERNAL` | 500 | a defect |

| route | answer |
|---|---|
| `GET /health` | `status` |

`ready`
"""
CASES = [
    {"error": "INTERNAL", "http_status": 500},
    {"method": "POST", "route": "/execute"},
    {"method": "POST", "route": "/shutdown"},
    {"method": "GET", "route": "/health"},
    {"method": "GET", "route": "/v1/models/{model:path}"},
    {"route": "/execute", "field": "prompt"},
    {"event": "ready"},
    {"metric": "worker_up"},
]


def answered(method: str, path: str, status: int) -> Exchange:
    return replace(exchange(path, {}, status=status), method=method)


ROUTES = [
    answered("DELETE", "/execute", 405),
    answered("DELETE", "/shutdown", 405),
    answered("DELETE", "/v1/models/m", 405),
    answered("DELETE", "/health", 405),
    answered("GET", "/health", 200),
    answered("POST", "/execute", 400),
    answered("GET", "/v1/models/m", 200),
]
MODULES = [f"harness/m{n}.py" for n in range(20)] + ["harness/__init__.py"]
ARCH = "harness/ certifies: " + ", ".join(f"`harness/m{n}.py`" for n in range(20))
GUIDE = """# User guide
`cpu`, `gpu`, `m0`; `pass`, `fail`, `error`, `not_run`, `not_applicable`, `waived`; `--profile`.
Exit codes: 0 certified, 1 not certified, 2 wrong usage, 3 harness error, 130 interrupted.

## Reproducibility
| model | device | verified |
|---|---|---|
| `small` | cpu | yes, in every run |
| `large` | cuda | not verified |
"""
NAMES = ("certify", "verify", "report", "run", "selftest", "doctor", "models", "keys", "engines",
         "gates", "config")  # fmt: skip
README = "\n".join(f"`haikugate {name}`" for name in NAMES)
HELP = "Options\n│ --help  x\nCommands\n" + "\n".join(f"│ {name}   Does." for name in NAMES)
DEV = "# Developers\n```sh\nmake test\npytest -m utf8 tests/a.py\n```\n"
TROUBLE = """# Troubleshooting
| the line says | do this |
|---|---|
| `INTERNAL` | report the defect |
| `no … here` | start it yourself |
"""
HELPED = {"shown": "pytest -m utf8 tests/a.py", "command": ["pytest", "--help"], "code": 0,
          "output": "--profile"}  # fmt: skip
MADE = {"shown": "make test", "command": ["make", "--dry-run", "test"], "code": 0, "output": ""}

SOUND: dict[str, dict[str, Any]] = {
    "G4-DOCS-API": {
        "pages": {"docs/engine-api.md": API},
        "probe": CASES,
        "help": {"code": 0, "output": "--port --help"},
        "health": [exchange("/health", {"status": "ready"})],
        "execute": [run(["a"])],
        "routes": ROUTES,
        "no_route": [exchange("/no-such-route", {}, status=404)],
    },
    "G4-DOCS-ARCH": {
        "pages": {"docs/architecture.md": ARCH},
        "modules": MODULES,
        "imports": {"harness": ["harness"], "suites": ["suites", "harness"]},
    },
    "G4-DOCS-USER": {
        "pages": {"docs/user-guide.md": GUIDE, "README.md": README, "docs/docker.md": "# Docker"},
        "help": {"code": 0, "output": HELP},
        "run_options": ["--profile"],
        "registered": ["small", "large"],
        "under_test": {"model": "small", "device": "cpu"},
        "twice": [run(["a"]), run(["a"], 50)],
    },
    "G4-DOCS-DEV": {
        "pages": {
            "CONTRIBUTING.md": "# Rules: [a test](tests/a.py)",
            "docs/developer-guide.md": DEV,
            "docs/ci.md": "# CI\n[rules](../CONTRIBUTING.md) [top](#ci)",
        },
        "runs": [MADE, HELPED],
        "files": ["tests/a.py", "CONTRIBUTING.md"],
        "makefile": ".PHONY: test\n",
    },
    "G4-DOCS-TROUBLE": {
        "pages": {"docs/troubleshooting.md": TROUBLE},
        "probe": CASES,
        "launch_errors": dict.fromkeys(LAUNCH_ERRORS, "no engine here"),
    },
}


def judged(check: str, **changed: Any) -> tuple[Verdict, str]:
    named = {"runs": [], "files": [], **SOUND[check], **changed}
    seen = {k: tuple(v) for k, v in named.items() if _recorded(v)}
    facts = {k: v for k, v in named.items() if not _recorded(v)}
    found = JUDGES[check](Observation(check, "test", 1, seen, facts), {})
    return found.verdict, found.message


def _recorded(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Exchange)


@pytest.mark.parametrize("check", SOUND)
def test_sound_documents_pass(check: str) -> None:
    assert judged(check)[0] == Verdict.PASS, judged(check)[1]


def test_every_page_of_a_check_must_be_there() -> None:
    for check, pages in PAGES.items():
        for page in pages:
            held = {name: text for name, text in SOUND[check]["pages"].items() if name != page}
            verdict, message = judged(check, pages=held)
            assert (verdict, message) == (Verdict.FAIL, f"{page}: no such document")


def edited(check: str, page: str, old: str, new: str) -> dict[str, Any]:
    text = SOUND[check]["pages"][page]
    assert old in text
    return {"pages": {**SOUND[check]["pages"], page: text.replace(old, new)}}


def api(old: str, new: str) -> dict[str, Any]:
    return edited("G4-DOCS-API", "docs/engine-api.md", old, new)


def guide(old: str, new: str) -> dict[str, Any]:
    return edited("G4-DOCS-USER", "docs/user-guide.md", old, new)


def developer(old: str, new: str) -> dict[str, Any]:
    return edited("G4-DOCS-DEV", "docs/developer-guide.md", old, new)


def trouble(old: str, new: str) -> dict[str, Any]:
    return edited("G4-DOCS-TROUBLE", "docs/troubleshooting.md", old, new)


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("G4-DOCS-API", api("| `INTERNAL` | 500 |", "| `INTERNAL` | 501 |"), "error codes"),
    ("G4-DOCS-API", api("| `INTERNAL` |", "| `EXTERNAL` |"), "error codes"),
    ("G4-DOCS-API", api("`POST /execute`", "`GET /execute`"), "routes"),
    ("G4-DOCS-API", api("fields `prompt`", "fields"), "field"),
    ("G4-DOCS-API", api("worker_up", "worker"), "metric"),
    ("G4-DOCS-API", api("`ready`", "`there`"), "event"),
    ("G4-DOCS-API", api("`status` |", "`state` |"), "/health"),
    ("G4-DOCS-API", api("| `--port` |", "| `--prot` |"), "options"),
    ("G4-DOCS-API", api(", seed,", ","), "event started lacks ['seed']"),
    ("G4-DOCS-API", api("| `end` |", "| `ended` |"), "lacks the events ['end']"),
    ("G4-DOCS-API", {"routes": [answered("DELETE", "/execute", 404), *ROUTES[1:]]}, "wanted 405"),
    (
        "G4-DOCS-API",
        {"routes": [*ROUTES[:-2], answered("POST", "/execute", 404), ROUTES[-1]]},
        "404",
    ),
    ("G4-DOCS-API", {"no_route": [exchange("/no-such-route", {})]}, "wanted 404"),
    ("G4-DOCS-ARCH", {"modules": MODULES[1:]}, "which is not there"),
    ("G4-DOCS-ARCH", {"modules": [*MODULES, "engine/__init__.py"]}, "the package engine/"),
    ("G4-DOCS-ARCH", {"pages": {"docs/architecture.md": "`harness/m1.py`"}}, "wanted at least"),
    ("G4-DOCS-ARCH", {"imports": {"harness": ["harness", "engine"]}}, "harness imports"),
    ("G4-DOCS-ARCH", {"imports": {"suites": ["harness", "tests"]}}, "suites imports"),
    ("G4-DOCS-USER", {"run_options": ["--profile --nonce"]}, "lacks the options ['--nonce']"),
    ("G4-DOCS-USER", guide("`waived`", "waived"), "does not explain ['waived']"),
    ("G4-DOCS-USER", guide(", 130 interrupted", ""), "exit codes"),
    ("G4-DOCS-USER", guide("| `large` |", "| `huge` |"), "lacks ['large']"),
    ("G4-DOCS-USER", guide("yes, in", "perhaps in"), "is no answer"),
    ("G4-DOCS-USER", {"under_test": {"model": "small", "device": "cuda:0"}}, "nothing of small"),
    ("G4-DOCS-USER", {"twice": [run(["a"]), run(["b"], 50)]}, "differs from run 1"),
    ("G4-DOCS-USER", {"help": {"code": 0, "output": HELP + "\n│ fleet   Runs."}}, "fleet"),
    ("G4-DOCS-DEV", {"makefile": ".PHONY: test clean\n"}, "`make clean`"),
    ("G4-DOCS-DEV", {"files": ["CONTRIBUTING.md"]}, "leads nowhere"),
    ("G4-DOCS-DEV", edited("G4-DOCS-DEV", "docs/ci.md", "#ci", "#no"), "no heading"),
    ("G4-DOCS-DEV", {"runs": [{**MADE, "code": 2}, HELPED]}, "`make test`: code 2"),
    ("G4-DOCS-DEV", developer("-m utf8", "-m utf9"), "was not tried"),
    ("G4-DOCS-TROUBLE", trouble("`INTERNAL`", "`EXTERNAL`"), "error codes"),
    ("G4-DOCS-TROUBLE", trouble("start it yourself", "pray"), "without advice"),
    ("G4-DOCS-TROUBLE", trouble("`no … here`", "`nothing here`"), "has no row for"),
    ("G4-DOCS-TROUBLE", trouble("`no … here`", "`no e…`"), "says little"),
]


@pytest.mark.parametrize(("check", "changed", "says"), BROKEN)
def test_each_rule_fails(check: str, changed: dict[str, Any], says: str) -> None:
    verdict, message = judged(check, **changed)
    assert says in message
    assert verdict == (Verdict.ERROR if says == "was not tried" else Verdict.FAIL), message


COMMANDS: list[tuple[str, Callable[[str], dict[str, Any]], str]] = [
    ("pytest -m utf9 tests/a.py", lambda shown: {**HELPED, "shown": shown}, "marked utf9"),
    ("pytest -m utf8 tests/b.py", lambda shown: {**HELPED, "shown": shown}, "tests/b.py"),
    ("pytest -m utf8 --nonsense", lambda shown: {**HELPED, "shown": shown}, "no --nonsense"),
]


@pytest.mark.parametrize(("shown", "ran", "says"), COMMANDS)
def test_a_command_that_cannot_work_fails(
    shown: str, ran: Callable[[str], dict[str, Any]], says: str
) -> None:
    changed = developer("pytest -m utf8 tests/a.py", shown)
    verdict, message = judged("G4-DOCS-DEV", **changed, runs=[MADE, ran(shown)])
    assert verdict == Verdict.FAIL
    assert says in message


def test_a_docker_command_is_held_to_the_files_it_names() -> None:
    page = "# Docker\n```sh\ndocker build --file Dockerfile.gpu .\n```\n"
    pages = {**SOUND["G4-DOCS-USER"]["pages"], "docs/docker.md": page}
    assert judged("G4-DOCS-USER", pages=pages)[0] == Verdict.FAIL
    assert judged("G4-DOCS-USER", pages=pages, files=["Dockerfile.gpu"])[0] == Verdict.PASS


@pytest.mark.parametrize(
    ("check", "changed"),
    [
        ("G4-DOCS-API", {"probe": CASES[1:]}),
        ("G4-DOCS-API", {"help": {"code": 1, "output": "no"}}),
        ("G4-DOCS-API", {"routes": ROUTES[1:]}),
        ("G4-DOCS-API", {"routes": ROUTES[:-1]}),
        ("G4-DOCS-DEV", {"runs": [{**MADE, "code": None, "output": "no make"}, HELPED]}),
        ("G4-DOCS-TROUBLE", {"launch_errors": {}}),
        ("G4-DOCS-TROUBLE", {"probe": [{"metric": "worker_up"}]}),
    ],
)
def test_what_was_not_seen_is_an_error(check: str, changed: dict[str, Any]) -> None:
    assert judged(check, **changed)[0] == Verdict.ERROR


def test_these_are_the_checks_of_documents() -> None:
    listed = {id_ for id_ in load_checklists().checks if id_.startswith("G4-DOCS-")}
    assert listed == JUDGES.keys() == PAGES.keys()
