"""What the API consists of: error codes, routes, request fields, narrated events, metrics."""

import re
from types import SimpleNamespace
from typing import Any

from starlette.routing import Route

import engine.binding
import engine.refusals
from engine.errors import EngineError
from engine.metrics import WorkerMetrics
from engine.narration import EVENTS
from engine.openai_api import openai_routes
from engine.probe import Case, ProbeOptions
from engine.routes import native_routes
from engine.validation import Body, CancelBody, DetokenizeBody, ExecuteBody, ScoreBody, TokenizeBody

BODIES: dict[str, type[Body]] = {
    "/execute": ExecuteBody,
    "/cancel": CancelBody,
    "/score": ScoreBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


DEFINERS = (engine.binding, engine.refusals)
"""Modules whose errors are leaves of the tree as soon as they are imported."""


def cases(options: ProbeOptions) -> list[Case]:
    """One case each error code, route, request field, narrated event and metric."""
    exposition = WorkerMetrics().exposition(0).decode()
    metrics = re.findall(r"^# TYPE (\w+)", exposition, re.MULTILINE)
    errors = {error.code: error.http_status for error in _tree(EngineError)}
    fields = [(path, name) for path, body in BODIES.items() for name in body.model_fields]
    return [
        *({"error": code, "http_status": status} for code, status in errors.items()),
        *({"method": _method(route), "route": route.path} for route in _routes()),
        *({"route": path, "field": name} for path, name in fields),
        *({"event": name} for name in EVENTS),
        *({"metric": name} for name in metrics),
    ]


def _tree(kind: type[EngineError]) -> list[type[EngineError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _tree(child))]


def _routes() -> list[Route]:
    """The routes of a service that serves nothing: only their paths and methods are looked at."""
    nothing: Any = SimpleNamespace(model=SimpleNamespace(name=""))
    return [*native_routes(nothing), *openai_routes(nothing)]


def _method(route: Route) -> str:
    return min((route.methods or set()) - {"HEAD"})
