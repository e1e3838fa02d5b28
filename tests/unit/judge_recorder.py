"""A pytest plugin that records which verdicts the judges reach while tests run.

It writes JSON to the file that JUDGE_RECORD names: [check, test function, verdict] triples.
"""

import json
import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import harness.judges

VARIABLE = "JUDGE_RECORD"
REACHED: set[tuple[str, str, str]] = set()


def recorded(check: str, judge: Callable[..., Any]) -> Callable[..., Any]:
    """The judge, with each of its verdicts kept."""

    @wraps(judge)
    def judged(observation: Any, limits: Any) -> Any:
        finding = judge(observation, limits)
        REACHED.add((check, observation.test.partition("[")[0], str(finding.verdict)))
        return finding

    return judged


def pytest_configure() -> None:
    for info in iter_modules(harness.judges.__path__):
        table = getattr(import_module(f"harness.judges.{info.name}"), "JUDGES", {})
        for check in table:
            table[check] = recorded(check, table[check])
            harness.judges.JUDGES[check] = table[check]  # type: ignore[index]


def pytest_unconfigure() -> None:
    Path(os.environ[VARIABLE]).write_text(json.dumps(sorted(REACHED)))
