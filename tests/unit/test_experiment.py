"""Experiment configurations: validated before anything runs, hashed canonically."""

import json
from pathlib import Path

import pytest

from harness.checked import checked
from harness.errors import UsageError
from harness.experiment import ExperimentConfig
from harness.prompts import built_in_prompts, choose, read_prompts


def test_the_hash_ignores_where_the_result_is_written() -> None:
    here = ExperimentConfig(output_dir=Path("a"))
    there = ExperimentConfig(output_dir=Path("b"))
    assert here.measurement_config_hash == there.measurement_config_hash
    assert len(here.measurement_config_hash) == 16


def test_the_hash_sees_every_measured_field() -> None:
    assert (
        ExperimentConfig(max_tokens=64).measurement_config_hash
        != ExperimentConfig(max_tokens=65).measurement_config_hash
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n_requests": 0}, "n_requests"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"colour": "red"}, "colour"),
        ({"methodology": "guessed"}, "methodology"),
        ({"methodology": "steady_state", "n_requests": 2}, "steady_state"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fields: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        checked(ExperimentConfig, fields, "experiment")
    assert "\n" not in str(caught.value)


def test_built_in_prompts_are_all_different() -> None:
    prompts = built_in_prompts()
    assert len(prompts) == len(set(prompts)) >= 100


def test_the_order_is_drawn_from_the_seed() -> None:
    prompts = built_in_prompts()
    assert choose(prompts, 20, seed=1, repeat=False) == choose(prompts, 20, seed=1, repeat=False)
    assert choose(prompts, 20, seed=1, repeat=False) != choose(prompts, 20, seed=2, repeat=False)


def test_prompts_are_not_repeated_unless_asked() -> None:
    with pytest.raises(UsageError, match="repeated prompt"):
        choose(["a", "b"], 3, seed=0, repeat=False)
    assert len(choose(["a", "b"], 3, seed=0, repeat=True)) == 3


def test_prompts_come_from_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("one", "zwei ü")))
    assert read_prompts(path) == ["one", "zwei ü"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"text": "x"}', '{"prompt": ""}', '{"prompt": 3}', "[" * 100_000]
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + line + "\n")
    with pytest.raises(UsageError, match="line 2"):
        read_prompts(path)
