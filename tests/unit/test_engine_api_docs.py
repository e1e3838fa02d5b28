import re
from pathlib import Path
from typing import Any

import typer

import engine.binding
import engine.refusals
from engine.cli import app
from engine.errors import EngineError
from engine.metrics import WorkerMetrics
from engine.narration import EVENTS
from engine.openai_api import openai_routes
from engine.routes import native_routes
from engine.validation import CancelBody, DetokenizeBody, ExecuteBody, ScoreBody, TokenizeBody
from tests.unit.engine_fakes import serving

TEXT = (Path(__file__).parents[2] / "docs" / "engine-api.md").read_text(encoding="utf-8")


def leaves(kind: type[EngineError]) -> list[type[EngineError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


def test_every_error_code_stands_with_its_status() -> None:
    assert engine.refusals is not None
    assert engine.binding is not None
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", TEXT, re.MULTILINE))
    assert documented == {leaf.code: str(leaf.http_status) for leaf in leaves(EngineError)}


def test_every_option_of_serve_stands_in_the_table() -> None:
    command: Any = typer.main.get_command(app)
    options = {
        name
        for option in command.commands["serve"].params
        for name in option.opts
        if name[:2] == "--"
    }
    assert set(re.findall(r"^\| `(--[a-z-]+)`", TEXT, re.MULTILINE)) == options - {"--help"}


def test_every_field_route_event_and_metric_is_named() -> None:
    words = set(re.findall(r"[a-z_]+", TEXT))
    for body in (ExecuteBody, CancelBody, TokenizeBody, DetokenizeBody, ScoreBody):
        assert set(body.model_fields) <= words
    assert set(EVENTS) <= words
    metrics = WorkerMetrics().exposition(0).decode()
    for name in set(re.findall(r"^# TYPE (\w+)", metrics, re.MULTILINE)):
        assert name in words


def test_every_route_is_documented_with_its_method() -> None:
    fake: Any = type("Service", (), {"model": type("Model", (), {"name": "x"})})
    for route in (*native_routes(fake), *openai_routes(fake)):
        method = next(iter((route.methods or set()) - {"HEAD"}))
        assert f"{method} {route.path}" in TEXT


def test_health_says_nothing_undocumented() -> None:
    import httpx

    with serving() as s:
        fields = set(httpx.get(s.url + "/health").json())
    assert fields - {"memory_limit_bytes"} <= set(re.findall(r"[a-z0-9_]+", TEXT))
