"""A fleet's campaign file: every cell it names, and every wrong field in one line."""

import re
from typing import Any

import pytest

from harness.errors import UsageError
from harness.fleet_campaign import cells
from harness.models import registry
from harness.plugin import OPTIONS
from harness.profiles import PROFILES

DEFAULT = "smollm2-135m-instruct"


def test_every_combination_is_a_cell() -> None:
    found = cells(
        {
            "engines": {"ours": {}, "theirs": {"engine": "openai", "gpus": 1}},
            "models": [DEFAULT, "/models/a.gguf"],
            "gates": [4, 1],
        },
        "c.yaml",
    )
    assert [cell.name for cell in found] == [
        f"{engine}/{model}/gate{gate}"
        for engine in ("ours", "theirs")
        for model in (DEFAULT, "a")
        for gate in (1, 4)
    ]


def test_a_cell_is_the_options_of_certify() -> None:
    engine = {
        "engine": "openai",
        "engine_command": "serve {model} {port}",
        "launcher": "process",
        "tokenizer": "/models/tokenizer.json",
        "ready_timeout": 30,
        "workers": 2,
        "gpus": 1,
    }
    (cell,) = cells({"engines": {"theirs": engine}, "models": ["/models/a.gguf"]}, "c.yaml")
    assert cell.options() == [
        *("--gate=4", "-n2", "--profile=gpu", "--launcher=process", "--engine=openai"),
        *("--engine-command=serve {model} {port}", "--tokenizer=/models/tokenizer.json"),
        *("--ready-timeout=30.0", "--model=/models/a.gguf"),
    ]
    known = {flag for flag, _ in OPTIONS} | {"--gate", "-n2"}
    assert {word.partition("=")[0] for word in cell.options()} <= known


def test_without_models_a_cell_is_about_those_of_its_profile() -> None:
    (cell,) = cells({"engines": {"ours": {"profile": "m0", "gpus": 1}}}, "c.yaml")
    assert cell.name == "ours/profile-models/gate4"
    assert cell.options() == ["--gate=4", "-n0", "--profile=m0"]


@pytest.mark.parametrize("model", registry())
def test_a_registered_model_keeps_its_whole_name(model: str) -> None:
    (cell,) = cells({"engines": {"ours": {}}, "models": [model]}, "c.yaml")
    assert cell.name == f"ours/{model}/gate4"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_one_of_a_campaign(profile: str) -> None:
    (cell,) = cells({"engines": {"ours": {"profile": profile, "gpus": 1}}}, "c.yaml")
    assert cell.engine.claimed == profile


ENGINES: dict[str, Any] = {"engines": {"ours": {}}}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "engines: Field required"),
        ({"engines": {}}, "engines: Dictionary should have at least 1 item"),
        ({"engines": {"ours": {"cpus": True}}}, "engines.ours.cpus: Input should be a valid int"),
        ({"engines": {"ours": {"image": ""}}}, "engines.ours.image"),
        ({"engines": {"ours": {"ready_timeout": float("inf")}}}, "engines.ours.ready_timeout"),
        ({"engines": {"ours": {"engine": "soap"}}}, "engines.ours: --engine: wanted one of"),
        ({"engines": {"a": {"launcher": "attach"}}}, "launcher attach needs --engine-url URL"),
        ({**ENGINES, "models": DEFAULT}, "models: Input should be a valid list"),
        ({**ENGINES, "models": [DEFAULT, DEFAULT.upper()]}, f"ours/{DEFAULT}/gate4 stands twice"),
        ({**ENGINES, "gates": [True]}, "gates.0"),
        ({**ENGINES, "gates": ["1"]}, "gates.0: Input should be a valid int"),
        ({**ENGINES, "colour": 1}, "colour: no such field, there are engines, models, gates"),
        ({"engines": {"ours": {"threads": 2}}}, "engines.ours.threads: no such field"),
        ({"engines": {"ours": {"profile": "gpu"}}}, "profile gpu needs gpus: 1 or more"),
        ({"engines": {"ours": {"profile": "tpu"}}}, "engines.ours.profile"),
        ({"engines": {"ours": {"tokenizer": "t.json"}}}, "its path must be absolute"),
        ({"engines": {"../ours": {}}}, "'../ours' names a folder"),
        ({**ENGINES, "gates": [5]}, "gates.0"),
        ({**ENGINES, "gates": []}, "gates"),
        ({**ENGINES, "models": ["gpt-5"]}, "model 'gpt-5': wanted a path that exists or one of"),
        ({**ENGINES, "models": ["models/a.gguf"]}, "its path must be absolute"),
        ({**ENGINES, "models": ["/m/a b.gguf"]}, "'a b' names a folder"),
        ({**ENGINES, "models": ["/m/a.gguf", "/n/a.gguf"]}, "ours/a/gate4 stands twice"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        cells(fields, "c.yaml")
    assert "\n" not in str(caught.value)
