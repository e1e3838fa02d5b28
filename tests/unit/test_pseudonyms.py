"""Evidence names no machine, no device and no user."""

import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.environment import environment_snapshot
from harness.errors import UsageError
from harness.experiment import ExperimentConfig
from harness.pseudonyms import bare_release, pseudonym, without_home, without_secrets
from harness.under_test import EngineOptions, EngineUnderTest


def test_a_pseudonym_tells_devices_apart_and_names_none() -> None:
    assert pseudonym("GPU-1") == pseudonym("GPU-1") != pseudonym("GPU-2")
    assert "GPU-1" not in pseudonym("GPU-1")


@pytest.mark.parametrize(
    ("release", "bare"),
    [("6.18.44-fc-v1-gpu", "6.18.44"), ("5.15.0", "5.15.0"), ("custom", "unknown")],
)
def test_a_release_keeps_its_numbers_alone(release: str, bare: str) -> None:
    assert bare_release(release) == bare


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("serve --api-key=s3 --port 80", "serve --api-key=*** --port 80"),
        ("serve --api-key s3 --port 80", "serve --api-key *** --port 80"),
        ("env HF_TOKEN=s3 serve", "env HF_TOKEN=*** serve"),
        ("serve --password s3 --verbose", "serve --password *** --verbose"),
        ("serve --max-tokens 5 --tokenizer t.json", "serve --max-tokens 5 --tokenizer t.json"),
        ("serve --api-key-file key.txt --auth --key", "serve --api-key-file key.txt --auth --key"),
    ],
)
def test_no_secret_of_a_command_is_shown(command: str, shown: str) -> None:
    assert without_secrets(command.split()) == shown.split()
    engine = EngineUnderTest(EngineOptions(profile="cpu", command=command))
    assert engine.identity()["command"] == shown.split()


@pytest.mark.parametrize("url", ["http://me:s3@127.0.0.1:80", "http://127.0.0.1:80/v1?key=s3"])
def test_an_address_with_a_secret_is_refused(url: str) -> None:
    options = EngineOptions(profile="cpu", launcher="attach", kind="openai", url=url)
    with pytest.raises(UsageError, match="no user, password or query") as refused:
        EngineUnderTest(options)
    assert "s3" not in str(refused.value)


def test_the_home_folder_is_a_tilde_wherever_it_stands() -> None:
    said = {"/home/a/x": ["in /home/a/y: no", 3, None], "b": "/home/ab/c", "c": "/home/a"}
    got = without_home(said, "/home/a")
    assert got == {"~/x": ["in ~/y: no", 3, None], "b": "/home/ab/c", "c": "~"}
    assert without_home("/etc", "/") == "/etc"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)


@given(json_values)
def test_what_holds_no_home_stays_as_it_is(value: object) -> None:
    assert without_home(value, "/home/nobody-here") == value


def test_the_environment_holds_no_identifier() -> None:
    snapshot = environment_snapshot()
    assert snapshot["os"] == f"{platform.system()} {bare_release(platform.release())}"
    for gpu in snapshot["gpus"]:
        assert gpu["uuid"] is None or gpu["uuid"].startswith("anonymous-")
    assert str(Path.home()) + "/" not in str(snapshot)


def test_an_experiment_in_evidence_keeps_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    here = ExperimentConfig(model="/home/alice/models/m.gguf")
    recorded = without_home(here.model_dump(mode="json"), "/home/alice")
    monkeypatch.setenv("HOME", "/home/bob")
    read_back = ExperimentConfig.model_validate(recorded)
    assert read_back.model == "~/models/m.gguf"
    monkeypatch.setenv("HOME", "/home/alice")
    assert here.measurement_config_hash == read_back.measurement_config_hash
