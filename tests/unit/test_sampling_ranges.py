"""One table of ranges: `generate` takes what the API takes, and refuses the rest in one line."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from engine import terminal
from engine.cli import app
from engine.errors import InvalidRequest
from engine.sampling_ranges import RANGES, Range, check_top_k
from engine.validation import ExecuteBody, parse_body

MOST_SEED = 18446744073709551615
HELD: dict[str, tuple[Any, ...]] = {
    "max_tokens": (1, 99999),
    "temperature": (0.0, 2.0),
    "top_p": (1e-9, 1.0),
    "top_k": (0, 40),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, 2.0),
    "seed": (0, MOST_SEED),
}
OUTSIDE: dict[str, tuple[Any, ...]] = {
    "max_tokens": (0, -1),
    "temperature": (-0.01, 2.01),
    "top_p": (0.0, 1.01),
    "top_k": (-1,),
    "min_p": (-0.01, 1.01),
    "repetition_penalty": (0.0, 2.01),
    "seed": (-1, MOST_SEED + 1),
}
ASKED = ("max_tokens", "temperature", "top_p", "top_k", "seed")
"""What `generate` has an option for."""


def generate(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> tuple[int, str]:
    monkeypatch.setattr(terminal, "run", lambda _: 0)
    option = f"--{name.replace('_', '-')}={value}"
    done = CliRunner().invoke(app, ["generate", "-m", "m.gguf", "-p", "x", option])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def body(name: str, value: Any) -> bytes:
    return json.dumps({"job_id": "a", "prompt": "x", name: value}).encode()


@pytest.mark.parametrize("name", RANGES)
def test_the_api_takes_the_range_and_refuses_what_is_outside(name: str) -> None:
    for value in HELD[name]:
        assert RANGES[name].holds(value)
        assert getattr(parse_body(ExecuteBody, body(name, value)), name) == value
    for value in OUTSIDE[name]:
        assert not RANGES[name].holds(value)
        with pytest.raises(InvalidRequest):
            parse_body(ExecuteBody, body(name, value))


@pytest.mark.parametrize("name", ASKED)
def test_generate_takes_what_the_api_takes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert [generate(monkeypatch, name, value)[0] for value in HELD[name]] == [0] * len(HELD[name])
    for value in OUTSIDE[name]:
        code, said = generate(monkeypatch, name, value)
        assert code == 2
        assert f"wanted {RANGES[name]}, got {value}" in said


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_what_is_no_number_is_in_no_range(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert generate(monkeypatch, name, "nan")[0] == 2
    assert generate(monkeypatch, name, "inf")[0] == 2


def test_no_more_candidates_than_tokens() -> None:
    check_top_k(7, 7)
    with pytest.raises(InvalidRequest, match="top_k: wanted at most 7"):
        check_top_k(8, 7)


def test_a_range_says_its_ends() -> None:
    assert str(Range(gt=0.0, le=1.0)) == "above 0.0 and at most 1.0"
    assert str(Range(ge=1)) == "at least 1"
