"""Judges of the documents: what they list is what there is, and what they show works."""

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from harness.checklist import load_checklists
from harness.documents import anchors, commands, links, quoted, rows
from harness.judges.rule import (
    Broken,
    Unseen,
    body,
    exchange,
    exchanges,
    fact,
    json_object,
    judge,
    need,
    passed,
    where,
)
from harness.judges.stream import identical
from harness.observation import Exchange, Finding, Judge, Limits, Observation, Verdict
from harness.sse import EventDecoder

Table = Mapping[str, Any]

PAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "G4-DOCS-API": ("docs/engine-api.md",),
    "G4-DOCS-ARCH": ("docs/architecture.md",),
    "G4-DOCS-USER": ("README.md", "docs/user-guide.md", "docs/docker.md"),
    "G4-DOCS-DEV": ("CONTRIBUTING.md", "docs/developer-guide.md", "docs/ci.md"),
    "G4-DOCS-TROUBLE": ("docs/troubleshooting.md",),
}
"""The pages that each check is about; the developer's check takes all other pages of docs/ too."""

FOREIGN: Final = ("docker",)
"""Programs that are not ours and need not be here: only the files that a command names count."""

LAUNCH_ERRORS: Final = (
    "cannot-start",
    "exited-early",
    "not-ready",
    "no-answer",
    "model-missing",
    "docker-down",
    "docker-elsewhere",
    "docker-permission",
    "docker-gpu",
    "docker-port",
    "docker-command",
    "docker-disk",
)
SSE_EVENTS: Final = ("started", "token", "metrics", "end", "error")
SERVED_ELSEWHERE: Final = "/shutdown"
EXIT_CODES: Final = ("0", "1", "2", "3", "130")
PROFILES: Final = ("cpu", "gpu", "m0")
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_COMMAND_LINE: Final = re.compile(r"(?m)^[│|] ([a-z][a-z-]+) {2,}\S")


@judge
def api(observation: Observation, limits: Limits) -> Finding:
    """Routes, options, fields, events, metrics and error codes are those of the engine, no more."""
    (text,) = _sound(observation, "G4-DOCS-API").values()
    cases = _cases(observation)
    tables = rows(text)
    codes = {c["error"]: str(c["http_status"]) for c in cases if "error" in c}
    _same("error codes", _codes(tables), codes)
    routes = {(c["method"], c["route"]) for c in cases if "method" in c}
    _same("routes", set(re.findall(r"\b(GET|POST) (/[^\s`,]*)", text)), routes)
    _served(observation, routes)
    options = set(_OPTION.findall(_help(observation))) - {"--help"}
    _same("options of serve", {o for row in tables for o in _OPTION.findall(row[0])}, options)
    words = _words(quoted(text))
    for kind in ("field", "event", "metric"):
        named = {c[kind] for c in cases if kind in c}
        need(bool(named), f"the engine lists no {kind}")
        need(named <= words, f"docs/engine-api.md lacks the {kind} {sorted(named - words)}")
    health = set(body(exchange(observation, "health")))
    told = _words(part for row in tables if "GET /health" in row[0] for part in quoted(row[-1]))
    need(health <= told, f"docs/engine-api.md lacks /health's {sorted(health - told)}")
    _events(exchange(observation, "execute"), tables)
    return passed(f"{len(codes)} codes, {len(routes)} routes and {len(options)} options agree")


@judge
def architecture(observation: Observation, limits: Limits) -> Finding:
    """Every module that it names exists, every package is named, and its import law holds."""
    (text,) = _sound(observation, "G4-DOCS-ARCH").values()
    modules = _list(observation, "modules")
    named = [word for word in quoted(text) if re.fullmatch(r"[\w/.-]*(\.(py|toml|cuh?)|\w/)", word)]
    need(len(named) >= 20, f"docs/architecture.md names {len(named)} modules, wanted at least 20")
    for word in named:
        known = any(f"/{path}".endswith(f"/{word}") or f"/{word}" in f"/{path}" for path in modules)
        need(known, f"docs/architecture.md names `{word}`, which is not there")
    for package in sorted({posixpath.dirname(m) for m in modules if m.endswith("__init__.py")}):
        need(f"{package}/" in text, f"docs/architecture.md does not name the package {package}/")
    for package, ours in _table(observation, "imports").items():
        wrong = set(ours) - set(MAY_IMPORT[package]) - {package}
        need(not wrong, f"{package} imports {sorted(wrong)}, against docs/architecture.md's law")
    return passed(f"{len(named)} modules named and there; the import law holds")


MAY_IMPORT: Final[Mapping[str, tuple[str, ...]]] = {
    "harness": (),
    "engine": (),
    "engine/backends/cuda": ("engine", "kernels"),
    "kernels": (),
    "suites": ("harness",),
}
"""What of ours a package may import besides itself."""


@judge
def user(observation: Observation, limits: Limits) -> Finding:
    """Commands, options, exit codes, verdicts and profiles; what was verified reproducible."""
    pages = _sound(observation, "G4-DOCS-USER")
    text = "\n".join(pages.values())
    names = _COMMAND_LINE.findall(_help(observation).partition("Commands")[2])
    need(len(names) >= 10, f"`haikugate --help` lists {names}")
    for name in names:
        need(f"haikugate {name}" in text, f"no page shows `haikugate {name}`")
    options = set(_OPTION.findall(_list(observation, "run_options")[0]))
    need(bool(options), "pytest lists no option of the plugin")
    missing = options - set(_OPTION.findall(text))
    need(not missing, f"docs/user-guide.md lacks the options {sorted(missing)}")
    guide = pages["docs/user-guide.md"]
    said = _words(quoted(guide))
    wanted = {*PROFILES, *(verdict.value for verdict in Verdict)}
    need(wanted <= said, f"docs/user-guide.md does not explain {sorted(wanted - said)}")
    codes = re.search(r"Exit codes: ([^.]*)\.", guide)
    told = set(re.findall(r"\d+", codes[1])) if codes else set()
    need(told == set(EXIT_CODES), f"docs/user-guide.md explains the exit codes {sorted(told)}")
    return passed(_reproducible(observation, guide))


@judge
def developer(observation: Observation, limits: Limits) -> Finding:
    """Every target of the Makefile is explained, and what the pages show works."""
    text = "\n".join(_sound(observation, "G4-DOCS-DEV").values())
    makefile = fact(observation, "makefile")
    targets = (re.search(r"(?m)^\.PHONY: (.+)$", str(makefile)) or [""] * 2)[1].split()
    need(bool(targets), "the Makefile has no .PHONY line")
    for target in targets:
        need(f"make {target}" in text, f"no page explains `make {target}`")
    return passed(f"{len(targets)} targets are explained, every command shown works")


@judge
def troubleshooting(observation: Observation, limits: Limits) -> Finding:
    """Each error code of the engine and each launch error, as it was said, has its row."""
    (text,) = _sound(observation, "G4-DOCS-TROUBLE").values()
    tables = [row for row in rows(text) if len(row) >= 2 and quoted(row[0])]
    for row in tables:
        need(len(row[-1]) >= 8, f"docs/troubleshooting.md: {row[0]} comes without advice")
    codes = {c["error"] for c in _cases(observation) if "error" in c}
    _same("error codes", {c for row in tables for c in _upper(row[0])}, codes)
    said = _table(observation, "launch_errors")
    unseen = set(LAUNCH_ERRORS) - said.keys()
    if unseen:
        raise Unseen(f"launch errors {sorted(unseen)} were not provoked")
    patterns = [_pattern(words) for row in tables for words in quoted(row[0])]
    for name, message in said.items():
        known = any(pattern.search(message) for pattern in patterns)
        need(known, f"docs/troubleshooting.md has no row for {name}: {message[:200]!r}")
    return passed(f"{len(codes)} error codes and {len(said)} launch errors have their advice")


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-DOCS-API": api,
    "G4-DOCS-ARCH": architecture,
    "G4-DOCS-USER": user,
    "G4-DOCS-DEV": developer,
    "G4-DOCS-TROUBLE": troubleshooting,
}


def _sound(observation: Observation, check: str) -> dict[str, str]:
    """The pages of a check and all others recorded: there, with links and commands that work."""
    pages = {name: str(text) for name, text in _table(observation, "pages").items()}
    for name in PAGES[check]:
        need(bool(pages.get(name, "").strip()), f"{name}: no such document")
    files = set(_list(observation, "files"))
    runs = {run["shown"]: run for run in _list(observation, "runs")}
    for name, text in pages.items():
        for target in links(text):
            _leads_somewhere(name, target, pages, files)
        for command in commands(text):
            _works(name, command, runs, files)
    return pages


def _leads_somewhere(name: str, target: str, pages: Mapping[str, str], files: set[str]) -> None:
    path, _, anchor = target.partition("#")
    at = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
    need(at in files or at in pages, f"{name}: the link to {target} leads nowhere")
    if anchor and at in pages:
        need(anchor in anchors(pages[at]), f"{name}: {at} has no heading #{anchor}")


def _works(name: str, command: str, runs: Mapping[str, Table], files: set[str]) -> None:
    if command.split()[0] in FOREIGN:
        for path in re.findall(r"--file (\S+)", command):
            need(path in files, f"{name}: `{command}` names {path}, which is not there")
        return
    if command not in runs:
        raise Unseen(f"{name}: `{command}` was not tried")
    run = runs[command]
    if run["code"] is None:
        raise Unseen(f"{name}: `{command}` cannot be tried: {run['output'][-300:]}")
    need(run["code"] == 0, f"{name}: `{command}`: code {run['code']}: {run['output'][-300:]}")
    if "--help" in run["command"]:
        known = set(_OPTION.findall(run["output"]))
        own = re.sub(r"\"[^\"]*\"", "", command)
        strange = [option for option in _OPTION.findall(own) if option not in known]
        need(not strange, f"{name}: `{command}`: there is no {', '.join(strange)}")
    if "pytest" in run["command"]:
        _selects(name, command, files)


def _selects(name: str, command: str, files: set[str]) -> None:
    """What a pytest command selects: markers of the gates, files that are there."""
    for marker in re.findall(r" -m (\S+)", command):
        known = re.fullmatch(r"gate[1-4]|gpu", marker) or marker in load_checklists().areas
        need(bool(known), f"{name}: `{command}`: no check is marked {marker}")
    for path in re.findall(r"(?<= )[\w./-]+\.py\b", command):
        need(path in files, f"{name}: `{command}` names {path}, which is not there")


def _served(observation: Observation, routes: Iterable[tuple[str, str]]) -> None:
    """Each route is the launched engine's: known with its method, refused with another."""
    answers = {(seen.method, _route(seen.path)): seen for seen in exchanges(observation, "routes")}
    for method, route in routes:
        other = answers.get(("DELETE", route))
        if other is None:
            raise Unseen(f"DELETE {route} was not tried")
        need(other.status == 405, f"DELETE {route}: wanted 405, got {other.status}")
        seen = answers.get((method, route))
        if seen is None and route != SERVED_ELSEWHERE:
            raise Unseen(f"{method} {route} was not tried")
        got = None if seen is None else seen.status
        need(got in (None, 200, 400), f"{method} {route} is documented and answers {got}")
    stranger = exchange(observation, "no_route")
    need(stranger.status == 404, f"{where(stranger)}: wanted 404, got {stranger.status}")


def _route(path: str) -> str:
    """The documented route that a path belongs to."""
    return re.sub(r"^/v1/models/.+$", "/v1/models/{model:path}", path)


def _events(seen: Exchange, tables: Iterable[list[str]]) -> None:
    """Every event that the engine sent is documented, with each of its fields."""
    documented = {
        names[0]: _words(quoted(row[1]))
        for row in tables
        if len(row) == 2 and len(names := quoted(row[0])) == 1
    }
    missing = set(SSE_EVENTS) - documented.keys()
    need(not missing, f"docs/engine-api.md lacks the events {sorted(missing)}")
    decoder = EventDecoder()
    told = [event for chunk in seen.chunks for event in decoder.push(chunk.content)]
    need(bool(told), f"{where(seen)}: no event came")
    for event in told:
        fields = set(json_object(event.data.encode(), f"event {event.type}"))
        strange = fields - documented.get(event.type, set())
        need(not strange, f"docs/engine-api.md: event {event.type} lacks {sorted(strange)}")


def _reproducible(observation: Observation, guide: str) -> str:
    """The table of verified models is complete, and true for what is under test."""
    section = guide.partition("## Reproducibility")[2].partition("\n## ")[0]
    told = {(quoted(row[0])[0], row[1]): row[2] for row in rows(section) if len(row) >= 3}
    models = set(_list(observation, "registered"))
    missing = models - {model for model, _ in told}
    need(not missing, f"docs/user-guide.md, Reproducibility: lacks {sorted(missing)}")
    strange = {answer for answer in told.values() if not answer.startswith(("yes", "not verified"))}
    need(not strange, f"docs/user-guide.md, Reproducibility: {sorted(strange)} is no answer")
    tested = _table(observation, "under_test")
    need("device" in tested, "the engine under test names no device")
    identical(exchanges(observation, "twice"), "the same request twice")
    device = "cuda" if str(tested["device"]).startswith("cuda") else "cpu"
    of_it = [answer for (model, on), answer in told.items()
             if model == tested.get("model") and on.startswith(device)]  # fmt: skip
    if tested.get("model") in models:
        need(bool(of_it), f"docs/user-guide.md says nothing of {tested['model']} on {device}")
    return f"{len(told)} rows say what was verified reproducible; commands and options agree"


def _pattern(words: str) -> re.Pattern[str]:
    """A message as a document shows it: `…` stands for anything, but not for everything."""
    need(
        len(words.replace("…", "").strip()) >= 6, f"docs/troubleshooting.md: {words!r} says little"
    )
    parts = (re.escape(part.strip()) for part in words.split("…"))
    return re.compile(r".*".join(parts), re.IGNORECASE | re.DOTALL)


def _words(parts: Iterable[str]) -> set[str]:
    return {word for part in parts for word in re.findall(r"\w+", part)}


def _upper(cell: str) -> list[str]:
    """The error code that a row is about, if it is about one: the only thing in its cell."""
    return re.findall(r"^`([A-Z][A-Z_]{3,})`$", cell)


def _codes(tables: Iterable[list[str]]) -> dict[str, str]:
    """Error codes with their statuses, from rows such as | `CODE` | 400 | why |."""
    return {
        names[0]: row[1]
        for row in tables
        if len(row) >= 3 and (names := _upper(row[0])) and row[1].isdigit()
    }


def _same(what: str, documented: Any, real: Any) -> None:
    if not real:
        raise Unseen(f"the engine lists no {what}")
    if documented == real:
        return
    pairs = [set(x.items()) if isinstance(x, dict) else set(x) for x in (documented, real)]
    raise Broken(
        f"{what}: documented but not there: {sorted(pairs[0] - pairs[1])}; "
        f"there but not documented: {sorted(pairs[1] - pairs[0])}"
    )


def _help(observation: Observation) -> str:
    told = _table(observation, "help")
    if told.get("code") != 0:
        raise Unseen(f"--help: exit code {told.get('code')}: {str(told.get('output'))[-300:]}")
    return str(told["output"])


def _cases(observation: Observation) -> list[Table]:
    cases: list[Table] = _list(observation, "probe")
    return cases


def _table(observation: Observation, name: str) -> Table:
    table = fact(observation, name)
    if not isinstance(table, dict):
        raise Unseen(f"{name} is no table")
    return table


def _list(observation: Observation, name: str) -> list[Any]:
    found = fact(observation, name)
    if not isinstance(found, list):
        raise Unseen(f"{name} is no list")
    return found
